"""Times and sizes that several modules share, or that statements use: see `statements`."""

#: Seconds without a heartbeat after which a worker counts as dead.
DEAD_AFTER_SECONDS = 10.0
#: The same while the session of its last heartbeat is open: the worker may run C code that holds the GIL.
SILENT_SECONDS = 30.0
#: Seconds for which a publisher's claim is valid; each batch renews it. A claim whose answer was lost blocks its job
#: for so long.
PUBLISH_LEASE_SECONDS = 8.0
#: Seconds until the next turn of a job of which nothing could be published, unless one of its items ends before.
#: Second: the same if a message becomes due meanwhile. Third: the same for a job with a rate.
TURN_PAUSE_SECONDS, DUE_PAUSE_SECONDS, RATE_PAUSE_SECONDS = 5.0, 1.0, 0.2
#: Seconds for which the record of outcomes waits for a lock: a locked row of one job must not delay other jobs.
LOCK_WAIT_SECONDS = 1.5
#: Seconds for which the store of plain sends waits for a lock: the senders wait, too.
SEND_LOCK_WAIT_SECONDS = 5.0
#: Seconds for which a user's action on a job waits for a lock; a retry of a million items holds its locks for longer.
ACTION_LOCK_WAIT_SECONDS = 20.0
#: Seconds for which the COPY of a chunk may lock its job.
COPY_LIMIT_SECONDS = 20.0
#: The most items that a publisher may publish beyond the committed watermark.
PUBLISH_WINDOW_ITEMS = 1000
#: The most outbox rows of ended jobs that one statement deletes, and the most jobs.
DROP_BATCH_MESSAGES, DROP_BATCH_JOBS = 50_000, 1_000
#: Seconds between two polls for work of all idle workers together.
SHARED_LOOK_SECONDS = 0.25
#: Workers read the control states that changed within so many seconds, because a transaction may commit late.
CONTROLS_SECONDS = 20.0
#: Seconds within which every worker with a message learns that a job was paused or stopped: it polls twice a second.
CONTROLS_HEARD_SECONDS = 1.5
#: Crashes charged to an item at which it fails.
MAX_CRASHES = 3
#: Seconds after the start of an attempt within which it is suspected of a crash of its worker.
DEADLY_SECONDS = 10.0
#: The most groups of errors of a job. Messages with further patterns share one group of their type and place.
MAX_ERROR_GROUPS = 100
#: Seconds for which a message waits that reached a worker without its actor, while another worker has the actor.
POSTPONE_SECONDS = 1.0
#: Seconds without a renewal of its lease after which a submission counts as broken off.
SUBMISSION_LEASE_SECONDS = 45.0
#: Seconds for which the claim of a callback is valid, longer than its delivery takes: for a webhook, and for a message.
WEBHOOK_LEASE_SECONDS, MESSAGE_LEASE_SECONDS = 45.0, 8.0
#: Seconds without a change after which the reason of a standstill is determined.
QUIET_AFTER_SECONDS = 10.0
#: The greatest item number that the database can store.
MAX_ITEM = 2**31 - 1
