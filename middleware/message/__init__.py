"""The data types of a message: its stamp, its bytes, its delivery, its attempt, and the attempt's failure."""
