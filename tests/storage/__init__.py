"""Tests of SQL and S3 as the services use them."""
