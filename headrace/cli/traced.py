"""``python -m viztracer … -m headrace.cli.traced -- serve …``: our command line so that VizTracer sees it whole.

VizTracer follows the processes that Python's own subprocess module starts, but uvloop starts them itself; and the
engine's process needs longer than usual to end, having its own calls to write.
"""

import asyncio
import sys

import uvloop

from headrace.cli.main import main
from headrace.engine import client

SAVING_SECONDS = 600.0

if __name__ == "__main__":
    uvloop.new_event_loop = asyncio.new_event_loop  # type: ignore[assignment]
    client.STOP_SECONDS = SAVING_SECONDS
    sys.exit(main())
