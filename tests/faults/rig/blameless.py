"""No item fails for the deaths of its workers, which these tests kill again and again. Imported beside the actors."""

from callboard.sql import timings

timings.MAX_CRASHES = 1_000
