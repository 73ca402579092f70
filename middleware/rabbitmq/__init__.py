"""Our RabbitMQ broker: consumes, acknowledges, publishes with confirms, and reports its queues to operators."""
