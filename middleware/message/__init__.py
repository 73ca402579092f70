"""The vocabulary: a message's stamp, its bytes, its delivery, its attempt, and the failure of one."""
