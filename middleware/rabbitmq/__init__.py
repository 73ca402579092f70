"""Our RabbitMQ broker: consuming and acknowledging, publishing with confirms, and Dramatiq's hooks made fast."""
