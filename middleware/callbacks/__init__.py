"""When a job or a stage ends: delivers its messages and webhooks, and makes the items of the next stage."""
