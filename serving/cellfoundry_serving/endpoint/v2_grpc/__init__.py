"""Open Inference Protocol V2 over gRPC, beside the HTTP server and around the same service."""

import os

# Before any module here imports gRPC, whose fork handlers would else write lines of their own to standard error when
# the endpoint starts the process that reads an upload. No process of ours uses gRPC after a fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
