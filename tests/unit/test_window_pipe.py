"""A run outlives whoever reads what it prints."""

from __future__ import annotations

import contextlib
import os

from rich.console import Console

from flows import window


def test_a_reader_that_is_gone_ends_nothing():
    assert Console.on_broken_pipe is window._outlive_the_reader
    reading, writing = os.pipe()
    os.close(reading)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "w", buffering=1) as pipe:  # closing flushes
        console = Console(file=pipe)
        console.print("one line")  # rich's own default raises SystemExit here
        console.print("and another")
        assert console.quiet
