"""Times and sizes that statements and the code around them share."""

#: Seconds without a heartbeat after which a worker is taken for dead.
DEAD_AFTER_SECONDS = 10.0
#: Seconds for which a publisher's claim holds, renewed with each batch. One whose answer was lost holds up its job.
PUBLISH_LEASE_SECONDS = 8.0
#: Items that a publisher may send beyond the committed watermark.
PUBLISH_WINDOW_ITEMS = 1000
#: Outbox rows of stopped jobs that are dropped at a time.
DROP_BATCH_MESSAGES = 50_000
#: Seconds within which every worker has heard what a job was told: it asks twice a second.
CONTROLS_HEARD_SECONDS = 1.5
#: Crashes after which an item is failed.
MAX_CRASHES = 3
#: Seconds for which a message waits that came to a worker without its actor, while another has it.
POSTPONE_SECONDS = 1.0
#: Seconds without a word from its submitter after which a submission is taken to have broken off.
SUBMISSION_LEASE_SECONDS = 45.0
#: Beyond every item.
MAX_ITEM = 2**31 - 1
