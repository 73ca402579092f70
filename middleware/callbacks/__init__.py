"""After the end of a job or a stage: messages and webhooks are delivered, the next stage's items are made."""
