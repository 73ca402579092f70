"""Between Dramatiq and PostgreSQL. `install` puts it on a broker; `runtime` builds its parts once a process.

In:    `rabbitmq.consumer` (other brokers: `deferring_consumer`) receives a message; `message.stamp` reads its job, item
       and attempt; `tracking`, called by Dramatiq, asks `attempts.in_flight` to admit it; a possible copy is claimed
       first (`attempts.claim`); the actor runs; `attempts.outcome` decides how the attempt ended, and whether it is
       retried; `journal.journal` commits many outcomes at once; `rabbitmq.acks` acknowledges after the commit.
Out:   `submission.submission` stores bulk items as rows, for `callboard.submit` and for POST /jobs (`web.submissions`);
       a plain send goes by `submission.enqueue` and the journal to `submission.send_store`, which stores it under a
       lease (`publish.send_leases`) and gives it to this process's publisher. `publish.publisher` publishes such sends,
       and claims what others stored; `publish.relay` sends both, and `rabbitmq.confirms` waits until RabbitMQ confirms
       them.
Sweep: `process.heartbeat` keeps this worker's row alive; one elected process runs `sweep.sweep`, which requeues the
       items of dead workers (`journal.rescue`; workers of the same host do so at once, by `process.run_file`), queues
       sends of processes that vanished, republishes lost messages (`sweep.lost_messages`), and deletes the rows of
       deleted jobs (`sweep.retention`).
End:   `callbacks.dispatcher` calls actors and webhooks; `callbacks.stage_maker` makes the items of the next stage.
"""
