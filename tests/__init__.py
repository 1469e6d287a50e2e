"""Tests: real processes, real sockets, a real S3 server.

Tests start processes while gRPC channels are open. gRPC's fork handlers would run in each of them before it is the new
program, and now and then kill it; they are off, as nothing here goes on using gRPC in a forked process.
"""

import os

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
