"""Webhooks that may take ten minutes, imported beside the actors."""

from callboard.middleware.callbacks import webhook

webhook.TOTAL_SECONDS = webhook.ANSWER_SECONDS = 600.0
