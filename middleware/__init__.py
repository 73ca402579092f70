"""Between Dramatiq and PostgreSQL. `install` puts it on a broker; `runtime` builds its parts once a process.

In:   rabbitmq.consumer receives a message and message.stamp reads its job, item and attempt; tracking, from Dramatiq's
      hook, has attempts.in_flight admit it; attempts.claim asks the database first if it may be a copy; the actor runs;
      attempts.outcome decides how it ended; journal.journal commits many outcomes in one transaction;
      rabbitmq.acks acknowledges only after the commit.
Out:  submission.submission (bulk) and submission.enqueue with submission.send_store (plain sends) store rows;
      publish.publisher claims them, publish.relay hands them over, rabbitmq.confirms waits for RabbitMQ's confirms.
Then: process.heartbeat says that this process lives and asks what jobs were told; in one elected process
      sweep.sweep requeues the items of dead workers (journal.rescue) and republishes what was lost
      (sweep.lost_messages); callbacks.dispatcher calls when a job ends, callbacks.stage_maker makes the next stage.
"""
