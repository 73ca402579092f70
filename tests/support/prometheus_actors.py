"""The actors of the pipeline in an app that has Dramatiq's Prometheus middleware."""

from dramatiq.middleware.prometheus import Prometheus

from tests.support.pipeline_actors import broker

broker.add_middleware(Prometheus())
