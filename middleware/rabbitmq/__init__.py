"""Our RabbitMQ broker: consuming, acknowledging, publishing with confirms, and its queues as an operator sees them."""
