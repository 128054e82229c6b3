"""Visitors of the lab's application for a load test: each writes numbered events and reads them back."""

from __future__ import annotations

from uuid import uuid4

from locust import HttpUser, constant, task


class Visitor(HttpUser):
    """One that is never done. Its rows have a client of their own, so the tally of the load client leaves them out."""

    wait_time = constant(0.05)

    def on_start(self) -> None:
        self.name, self.written = f"locust-{uuid4().hex[:12]}", 0

    @task(3)
    def write(self) -> None:
        event = {"n": self.written + 1, "client": self.name, "payload": {"via": "locust"}}
        if self.client.post("/events", json=event, name="write").status_code == 201:
            self.written += 1

    @task
    def read(self) -> None:
        if self.written:
            self.client.get(f"/events/{self.name}/{self.written}", name="read")
