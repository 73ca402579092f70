"""What a user reads of an error."""

import psycopg

from callboard.commands.errors import explain


def test_a_statement_that_took_too_long_is_no_lost_connection() -> None:
    refused = psycopg.errors.QueryCanceled("canceling statement due to statement timeout\nCONTEXT: …")
    assert explain(refused) == "the database refuses for now: canceling statement due to statement timeout; try again"
    assert str(explain(psycopg.OperationalError("server closed"))).startswith("the connection to the database was lost")
