"""Between Dramatiq and PostgreSQL. `install` puts it on a broker; `runtime` builds its parts once a process.

In:    `rabbitmq.consumer` (other brokers: `deferring_consumer`) receives a message; `message.stamp` reads its job, item
       and attempt; Dramatiq calls `tracking`, which asks `attempts.in_flight` to admit it; the item of a possible
       duplicate is claimed first (`attempts.claim`); the actor runs; `attempts.outcome` decides how the attempt ended,
       and whether it is retried; `journal.journal` commits many outcomes at once; `rabbitmq.acks` acknowledges after
       the commit.
Out:   `submission.submission` stores bulk items as rows, for `callboard.submit` and for POST /jobs (`web.submissions`).
       `submission.enqueue` gives a plain send to the journal; `submission.send_store` stores it under a lease
       (`publish.send_leases`) and passes it to this process's publisher. `publish.publisher` publishes these sends,
       and claims what other processes stored; `publish.relay` publishes both, and `rabbitmq.confirms` waits until
       RabbitMQ confirms them.
Sweep: `process.heartbeat` keeps this worker's row alive; one elected process runs `sweep.sweep`, which requeues the
       items of dead workers (`journal.rescue`; workers of the same host do so at once, by `process.run_file`), queues
       sends of processes that vanished, republishes lost messages (`sweep.lost_messages`), and deletes the rows of
       deleted jobs (`sweep.retention`).
End:   `callbacks.dispatcher` calls actors and webhooks; `callbacks.stage_maker` makes the items of the next stage.
"""
