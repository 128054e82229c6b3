"""Fills one site's bucket from another site's, as the tag ``relight-source`` of the own bucket says.

    copier.py --site east --endpoint URL --bucket venue-east --from west=URL/BUCKET --rclone PATH --first-source west

Every 2 s it reads the tag (GetBucketTagging) and, where it names a site of ``--from``, runs ``rclone copy`` into the
own bucket; without the tag nothing is copied. The keys are in the files that S3_ACCESS_KEY_FILE and
S3_SECRET_KEY_FILE name; rclone gets them by its environment.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

EVERY_S = 2.0
TAG = "relight-source"
PROBES = "relight-probe/"
"""What belongs to one site only and is never copied."""


def client(endpoint: str) -> Any:
    """An S3 client that gives up within seconds."""
    limits = Config(connect_timeout=1, read_timeout=2, retries={"max_attempts": 1}, s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=endpoint, config=limits)


def make_bucket(s3: Any, bucket: str, source: str) -> None:
    """Create the bucket where it is missing; only a new one gets the tag ``source``. Raises botocore's errors."""
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as e:
        if e.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        s3.create_bucket(Bucket=bucket)
        if source:
            s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [{"Key": TAG, "Value": source}]})


def source_of(s3: Any, bucket: str) -> str | None:
    """The site that the tag names; None without one."""
    try:
        tags = s3.get_bucket_tagging(Bucket=bucket)["TagSet"]
    except ClientError as e:
        if e.response["Error"]["Code"] == "NoSuchTagSet":
            return None
        raise
    return next((tag["Value"] for tag in tags if tag["Key"] == TAG), None)


def copy(rclone: str, source: str, endpoint: str, bucket: str) -> bool:
    """Copy what is new or changed from ``source`` (``http://host:port/bucket``). Never deletes at the destination.

    False when the pass was not complete; the reason is in the log.
    """
    base, _, name = source.rpartition("/")
    env = {**os.environ, "RCLONE_CONFIG": "/dev/null"}
    for remote, url in (("SOURCE", base), ("OWN", endpoint)):
        own = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": url, "REGION": "us-east-1"}
        env.update({f"RCLONE_CONFIG_{remote}_{key}": value for key, value in own.items()})
    limits = ["--contimeout=1s", "--timeout=3s", "--retries=1", "--low-level-retries=1", "--s3-no-check-bucket"]
    limits.append(f"--exclude={PROBES}**")
    argv = [rclone, "copy", f"source:{name}", f"own:{bucket}", "--checksum", *limits]
    ran = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        print(f"rclone from {source}: status {ran.returncode}: {ran.stderr.strip()[-500:]}", flush=True)
    return ran.returncode == 0


def main() -> int:
    """Runs until SIGTERM."""
    parser = argparse.ArgumentParser(description="Copies another site's bucket into this site's.")
    for name in ("site", "endpoint", "bucket", "rclone"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--from", dest="sources", action="append", default=[], metavar="SITE=URL/BUCKET")
    parser.add_argument("--first-source", default="", help="tag of a bucket that this process creates at its start")
    arguments = parser.parse_args()
    sources = dict(one.split("=", 1) for one in arguments.sources)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    for variable, file in (
        ("AWS_ACCESS_KEY_ID", "S3_ACCESS_KEY_FILE"),
        ("AWS_SECRET_ACCESS_KEY", "S3_SECRET_KEY_FILE"),
    ):
        os.environ[variable] = Path(os.environ[file]).read_text(encoding="utf-8").strip()
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    s3 = client(arguments.endpoint)
    first, begun = arguments.first_source, False
    while not stop.is_set():
        wait_s = EVERY_S
        try:
            make_bucket(s3, arguments.bucket, first)
            # A bucket that is lost later gets no guess: whoever recovers it says where it fills from.
            first, begun = "", True
            source = source_of(s3, arguments.bucket)
            if source in sources:
                started = datetime.now(UTC)
                if copy(arguments.rclone, sources[source], arguments.endpoint, arguments.bucket):
                    # All that the source held at that moment is here: what bounds the loss once the source is dark.
                    mark = f"{PROBES}copied-from-{source}"
                    s3.put_object(Bucket=arguments.bucket, Key=mark, Body=started.isoformat().encode())
            elif source is not None:
                print(f"bucket {arguments.bucket}: {TAG} is {source!r}; known are {sorted(sources)}", flush=True)
        except (BotoCoreError, ClientError) as e:
            print(f"bucket {arguments.bucket} at {arguments.endpoint}: {type(e).__name__} {e}", flush=True)
            wait_s = EVERY_S if begun else 0.1  # at the start the server comes up at the same time
        stop.wait(wait_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
