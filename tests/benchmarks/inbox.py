"""How long the receiver takes to answer, with every delivery on disk before its answer: a process of its own, over
HTTP, at rising rates. Prints figures; asserts nothing.

Example: ``python tests/benchmarks/inbox.py --seconds 5 --rates 50,100,200``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))
from receiving import TOKEN, Serve, alert, toy

PERCENTILES = (50, 90, 99)


async def posted(serve: Serve, rate: float, seconds: float, first: int) -> tuple[list[float], dict[int, int]]:
    """Seconds of each answer, and how often each status came."""
    took: list[float] = []
    statuses: dict[int, int] = {}

    async def one(client: httpx.AsyncClient, number: int) -> None:
        raw = json.dumps(alert(number)).encode()
        began = time.perf_counter()
        answer = await client.post("/alerts/am", content=raw, headers={"Authorization": f"Bearer {TOKEN}"})
        took.append(time.perf_counter() - began)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{serve.port}", timeout=30, limits=limits) as client:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                group.create_task(one(client, first + number))
    return took, statuses


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=5.0)
    options.add_argument("--rates", default="20,50,100,200")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        serve = Serve(Path(folder) / "state", toy(Path(folder)))
        serve.start()
        try:
            asyncio.run(posted(serve, 20, 1, 0))  # warm
            print(
                f"{'per s':>8} {'answers':>8} "
                + " ".join(f"{f'p{p} ms':>8}" for p in PERCENTILES)
                + "   max ms  statuses"
            )
            first = 1000
            for rate in map(float, asked.rates.split(",")):
                took, statuses = asyncio.run(posted(serve, rate, asked.seconds, first))
                first += 100_000
                cuts = statistics.quantiles(took, n=100, method="inclusive")
                figures = " ".join(f"{cuts[p - 1] * 1000:>8.1f}" for p in PERCENTILES)
                print(f"{rate:>8.0f} {len(took):>8} {figures} {max(took) * 1000:>8.1f}  {statuses}")
        finally:
            serve.stop()


if __name__ == "__main__":
    main()
