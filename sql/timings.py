"""Times and sizes that several modules share, or statements need: see `statements`."""

#: Seconds without a heartbeat after which a worker is taken for dead.
DEAD_AFTER_SECONDS = 10.0
#: Seconds after which it is, if the session of its last heartbeat is open: it may run C code that holds Python's lock.
SILENT_SECONDS = 30.0
#: Seconds for which a publisher's claim holds; each batch renews it. A claim whose answer was lost holds up its job.
PUBLISH_LEASE_SECONDS = 8.0
#: Seconds after which a job is looked at again whose turn came and of which nothing could be published, unless an item
#: of it ends before. A message whose time comes meanwhile waits a second; nothing tells when a rate allows more.
TURN_PAUSE_SECONDS, DUE_PAUSE_SECONDS, RATE_PAUSE_SECONDS = 5.0, 1.0, 0.2
#: Seconds that the record of outcomes waits for a lock: what holds a row of one job must not hold up other jobs.
LOCK_WAIT_SECONDS = 1.5
#: Seconds that the store of plain sends waits for one: their senders wait, too.
SEND_LOCK_WAIT_SECONDS = 5.0
#: Seconds that an action of a person on a job waits for one; a retry of a million items locks them for longer.
ACTION_LOCK_WAIT_SECONDS = 20.0
#: Seconds for which the COPY of a chunk may hold its job.
COPY_LIMIT_SECONDS = 20.0
#: Items that a publisher may send beyond the committed watermark.
PUBLISH_WINDOW_ITEMS = 1000
#: Outbox rows of ended jobs that one statement drops, and of how many jobs.
DROP_BATCH_MESSAGES, DROP_BATCH_JOBS = 50_000, 1_000
#: Seconds between two looks for work of all idle workers together.
SHARED_LOOK_SECONDS = 0.25
#: Workers read the controls of so many seconds, since a transaction may commit late.
CONTROLS_SECONDS = 20.0
#: Seconds within which every worker that has a message knows that a job was paused or stopped: it asks twice a second.
CONTROLS_HEARD_SECONDS = 1.5
#: Crashes charged to an item after which it is failed.
MAX_CRASHES = 3
#: An attempt that has run for so many seconds has shown that it does not kill its worker at once.
DEADLY_SECONDS = 10.0
#: Groups of errors of a job; messages of further patterns share one group of their type and place.
MAX_ERROR_GROUPS = 100
#: Seconds for which a message waits that came to a worker without its actor, while another worker has the actor.
POSTPONE_SECONDS = 1.0
#: Seconds without a sign of its submitter after which a submission is taken to have broken off.
SUBMISSION_LEASE_SECONDS = 45.0
#: Seconds for which the claim of a callback holds, longer than a delivery takes: of a webhook; of a message, which is
#: sent at once.
WEBHOOK_LEASE_SECONDS, MESSAGE_LEASE_SECONDS = 45.0, 8.0
#: Seconds without a change after which the reason of a standstill is looked for.
QUIET_AFTER_SECONDS = 10.0
#: The greatest item number that the database holds.
MAX_ITEM = 2**31 - 1
