"""The sweep: one elected process repairs what is stuck and deletes jobs whose time is over."""
