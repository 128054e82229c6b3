"""The ground of ``runbooks/event-venue*``: an account of its own on moto's server, with strict layers before it.

What runs in it is real: PostgreSQL at the RDS endpoints, PgBouncer, Redis, the lab's application server at each door.

A load balancer's name is its address here (``127.0.10.10.``), so that nobody needs a resolver of this machine for it.
"""

from __future__ import annotations

import json
import pwd
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aws as ground
import dns.message
import dns.query
import redis
import test_aurora
import test_rds
from aws_aurora import AuroraService, aurora
from aws_rds import Plant, Service, service
from pg_cluster import NODES, PORT, need
from ruamel.yaml import YAML
from strict_route53 import Strict as Zones
from supabase_server import ORGANIZATION, REF, Supabase, supabase
from test_rds import EAST, WEST
from venue import APP

from flows.engine import places

REGIONS = {"west": ground.REGION, "east": ground.OTHER_REGION}
DOOR = {"west": "127.0.10.10", "east": "127.0.10.20"}
"""Where a site's load balancer takes clients, and the site's pooler and cache."""
BALANCER = {"west": "50dc6c495c0c9188", "east": "60ed7d5a6d1d0299"}
"""The last part of a load balancer's name, in the metrics of it."""
HTTP, POOLER, CACHE = 8080, 6432, 6379
NAME, LB_ZONE = "app.venue.example.", "Z32O12XQLNTSW2"
TAG = [{"Key": "relight:system", "Value": "venue"}]

BOUNCER = """
[databases]
venue = host={host} port={port} dbname=postgres
[pgbouncer]
listen_addr = {door}
listen_port = {listen}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
admin_users = relight
pool_mode = transaction
server_login_retry = 1
server_connect_timeout = 2
query_wait_timeout = 5
"""


@dataclass(frozen=True)
class Variant:
    """What one variant of the system has of its own: its folder, its database, and the calls that this one takes.

    ``asked``: of a region that is dark. ``order``: the fence, and the promotion after it. ``faults``: operation -> what
    goes wrong with it. ``typed``: what changes the database by hand, with RDS in a planned move, with Aurora in a
    forced one.
    """

    folder: str
    database: Callable[..., Any]
    venue: type[Any]
    asked: frozenset[str]
    order: tuple[str, str]
    faults: dict[str, tuple[str | float, ...]]
    typed: tuple[str, ...] = ()


RDS = Variant(
    "event-venue",
    service,
    test_rds.Venue,
    frozenset({"DescribeDBInstances"}),
    ("ModifyDBInstance", "PromoteReadReplica"),
    {
        "DescribeDBInstances": ("Throttling", "pass", "503", "pass", 0.3),
        "PromoteReadReplica": ("Throttling", "lost"),
        "ModifyDBInstance": ("503",),
    },
    ("ModifyDBParameterGroup", "PromoteReadReplica"),
)
AURORA = Variant(
    "event-venue-aurora",
    aurora,
    test_aurora.Venue,
    frozenset({"DescribeDBClusters", "DescribeGlobalClusters"}),
    ("ModifyDBCluster", "FailoverGlobalCluster"),
    {
        "DescribeGlobalClusters": ("pass", "Throttling", "pass", 0.3),
        "DescribeDBClusters": ("Throttling",),
        "FailoverGlobalCluster": ("lost",),
        "SwitchoverGlobalCluster": ("lost",),
        "ModifyDBCluster": ("503",),
    },
    ("ModifyDBCluster", "RebootDBInstance", "FailoverGlobalCluster"),
)


SUPABASE = Variant("event-venue-supabase", supabase, object, frozenset(), ("", ""), {})


class Lag:
    """CloudWatch hears of the lag of both clusters all the time, as the service tells it.

    Its clock is ahead: a figure is of a minute and comes after it, so a planned move waits until the minute after the
    fence is over. Here that takes some seconds.
    """

    AHEAD_S = 50.0

    def __init__(self, rds: AuroraService) -> None:
        self._rds, self._over = rds, threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        while True:
            for cluster, region in ((WEST, REGIONS["west"]), (EAST, REGIONS["east"])):
                self._rds.lag(cluster, region, 0, ahead_s=self.AHEAD_S)
            if self._over.wait(1):
                return

    def close(self) -> None:
        self._over.set()
        self._thread.join(20)


GROUPS = {"app": "73e2d6bc24d8a067", "canary": "6d0ecf831eec9f09"}
"""Of west's target groups: the last part of each name."""


class Clients:
    """What west's load balancer tells CloudWatch, of the minute that it is, all the time: requests of both groups."""

    def __init__(self, server: Any, errors: int) -> None:
        self._watch, self._errors = server.client("cloudwatch", REGIONS["west"]), errors
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> None:
        self._say()
        self._thread.start()

    def __exit__(self, *_how: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _tell(self) -> None:
        while not self._over.wait(0.5):
            self._say()

    def _say(self) -> None:
        now, points = datetime.now(UTC), []
        for group, requests, errors in (("app", 360, 0), ("canary", 40, self._errors)):
            name = f"targetgroup/venue-west-{group}/{GROUPS[group]}"
            balancer = f"app/venue-west/{BALANCER['west']}"
            of = [{"Name": "LoadBalancer", "Value": balancer}, {"Name": "TargetGroup", "Value": name}]
            values = {"RequestCount": requests, "HTTPCode_Target_5XX_Count": errors, "TargetResponseTime": 0.1}
            points += [
                {"MetricName": m, "Dimensions": of, "Timestamp": now, "Value": v}
                for m, v in values.items()
                if v  # a count is only told when it is not 0
            ]
        self._watch.put_metric_data(Namespace="AWS/ApplicationELB", MetricData=points)


class Account:
    """What somebody set up beforehand, and the processes of two regions. Use inside an ExitStack."""

    def __init__(
        self, server: Any, rds: Service, zones: Zones, plant: Plant, folder: Path, *, variant: Variant = RDS
    ) -> None:
        self.server, self.rds, self.zones, self.plant, self.folder = server, rds, zones, plant, folder
        self.cluster, self.variant = plant.cluster, variant
        self.lag: Lag | None = None
        self.processes: list[subprocess.Popen[bytes]] = []

    def build(self) -> None:
        """Everything, from nothing."""
        server, cluster = self.server, self.cluster
        self.venue = self.variant.venue(server, self.rds, self.plant, cluster)
        if isinstance(self.rds, AuroraService):
            self.lag = Lag(self.rds)
        server.set(settle_s=0.0)
        for site, count in (("west", 2), ("east", 1)):
            self._servers(site, count)
        server.set(settle_s=0.2)
        self._names()
        self._buckets()
        self._edge()
        self._secrets()
        self._processes()

    # ---- what is there ----

    def _servers(self, site: str, count: int) -> None:
        region = REGIONS[site]
        ec2, elb, asg = (self.server.client(s, region) for s in ("ec2", "elbv2", "autoscaling"))
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        nets = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=f"{region}{z}")["Subnet"]
            for n, z in enumerate("ab")
        ]
        subnets = [n["SubnetId"] for n in nets]
        balancer = elb.create_load_balancer(Name=f"venue-{site}", Subnets=subnets, Tags=TAG)["LoadBalancers"][0]
        group = elb.create_target_group(Name=f"venue-{site}-app", Protocol="HTTP", Port=80, VpcId=vpc, Tags=TAG)
        arn = group["TargetGroups"][0]["TargetGroupArn"]
        trial = elb.create_target_group(
            Name=f"venue-{site}-canary", Protocol="HTTP", Port=80, VpcId=vpc, TargetType="ip", Tags=TAG
        )["TargetGroups"][0]["TargetGroupArn"]
        config = {"TargetGroups": [{"TargetGroupArn": arn, "Weight": 100}, {"TargetGroupArn": trial, "Weight": 0}]}
        elb.create_listener(
            LoadBalancerArn=balancer["LoadBalancerArn"],
            Protocol="HTTP",
            Port=80,
            DefaultActions=[{"Type": "forward", "ForwardConfig": config}],
        )
        template = ec2.create_launch_template(
            LaunchTemplateName="app", LaunchTemplateData={"ImageId": "ami-12c6146b", "InstanceType": "t3.large"}
        )["LaunchTemplate"]["LaunchTemplateId"]
        asg.create_auto_scaling_group(
            AutoScalingGroupName=f"venue-{site}",
            LaunchTemplate={"LaunchTemplateId": template, "Version": "1"},
            MinSize=1,
            MaxSize=4,
            DesiredCapacity=count,
            VPCZoneIdentifier=",".join(subnets),
            TargetGroupARNs=[arn],
            Tags=[{"Key": "relight:system", "Value": "venue", "PropagateAtLaunch": True}],
        )

    def _names(self) -> None:
        self.zones.addresses = {f"{address}.": (address,) for address in DOOR.values()}
        target = {"HostedZoneId": LB_ZONE, "DNSName": f"{DOOR['west']}.", "EvaluateTargetHealth": True}
        self.zone = self.zones.zone("venue.example", {"Name": NAME, "Type": "A", "AliasTarget": target})

    def _buckets(self) -> None:
        for site, region in REGIONS.items():
            s3 = self.server.client("s3", region)
            s3.create_bucket(Bucket=f"venue-{site}", CreateBucketConfiguration={"LocationConstraint": region})
            s3.put_bucket_tagging(Bucket=f"venue-{site}", Tagging={"TagSet": TAG})
            s3.put_object(Bucket=f"venue-{site}", Key="poster.png", Body=b"poster")
        self.copied("west", "east")

    def copied(self, source: str, to: str) -> None:
        """What a copier does: the bucket is tagged as a copy, and says up to when it is complete."""
        s3 = self.server.client("s3", REGIONS[to])
        s3.put_bucket_tagging(
            Bucket=f"venue-{to}", Tagging={"TagSet": [*TAG, {"Key": "relight-source", "Value": source}]}
        )
        now = datetime.now(UTC).isoformat()
        s3.put_object(Bucket=f"venue-{to}", Key=f"relight-probe/copied-from-{source}", Body=now.encode())

    def _edge(self) -> None:
        custom = {"HTTPPort": 80, "HTTPSPort": 443, "OriginProtocolPolicy": "https-only"}
        origins = [{"Id": s, "DomainName": f"origin-{s}.venue.example", "CustomOriginConfig": custom} for s in REGIONS]
        config = {
            "CallerReference": "venue",
            "Comment": "venue",
            "Enabled": True,
            "Origins": {"Quantity": 2, "Items": origins},
            "DefaultCacheBehavior": {"ViewerProtocolPolicy": "allow-all", "TargetOriginId": "west", "MinTTL": 0},
        }
        self.edge = self.server.client("cloudfront", "us-east-1").create_distribution_with_tags(
            DistributionConfigWithTags={"DistributionConfig": config, "Tags": {"Items": TAG}}
        )["Distribution"]["Id"]

    def _secrets(self) -> None:
        for region in REGIONS.values():
            client = self.server.client("secretsmanager", region)
            for name, secret in (("relight", "relight-secret"), ("redis", "redis-secret")):
                client.create_secret(Name=f"venue/{name}", SecretString=json.dumps({"password": secret}))

    # ---- what runs ----

    def _processes(self) -> None:
        with self.cluster.admin("west-pg1") as admin:
            admin.execute("CREATE ROLE app")
            admin.execute((APP / "schema.sql").read_text())
            admin.execute("GRANT app TO relight")
        if not (APP / "node_modules" / "pg").is_dir():
            subprocess.run([need("npm"), "ci", "--no-audit", "--no-fund"], cwd=APP, check=True, capture_output=True)
        for site, instance in (("west", WEST), ("east", EAST)):
            self._bouncer(site, self.plant.ways[instance][0].address)
            self._cache(site)
            self._app(site)
        for site in REGIONS:
            ground.until(lambda site=site: ground.listening((DOOR[site], HTTP)))
            ground.until(lambda site=site: ground.listening((DOOR[site], CACHE)))
            self.cache(site).set("relight:system", "venue")
            self.cache(site).set("page:home", "of the time before")

    def _start(self, name: str, argv: list[str], **more: Any) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes.append(subprocess.Popen(argv, stdout=log, stderr=log, **more))

    def _bouncer(self, site: str, upstream: str) -> None:
        folder = self.cluster.folder / f"bouncer-{site}"
        folder.mkdir()
        host, _, port = upstream.rpartition(":")
        values = {"host": host, "port": port, "door": DOOR[site], "listen": POOLER, "folder": folder}
        (folder / "ini").write_text(BOUNCER.format(**values))
        (folder / "users").write_text('"relight" "relight-secret"\n')
        account = self.cluster.account
        ids = {"user": account, "group": pwd.getpwnam(account).pw_gid, "extra_groups": []} if account else {}
        self._start(f"bouncer-{site}", [need("pgbouncer"), "-q", str(folder / "ini")], cwd="/", **ids)
        ground.until(lambda: ground.listening((DOOR[site], POOLER)))

    def _cache(self, site: str) -> None:
        options = ["--bind", DOOR[site], "--port", str(CACHE), "--requirepass", "redis-secret", "--save", ""]
        self._start(f"redis-{site}", [need("redis-server"), *options, "--dir", str(self.folder)])

    def _app(self, site: str) -> None:
        env = {
            "HOST": DOOR[site],
            "PORT": str(HTTP),
            "SITE": site,
            "NAME": f"{site}-app1",
            "PGHOST": DOOR[site],
            "PGPORT": str(POOLER),
            "PGDATABASE": "venue",
            "PGUSER": "relight",
            "PGPASSWORD_FILE": f"{self.cluster.folder}/relight",
        }
        self._start(f"app-{site}", [need("node"), "server.js"], cwd=APP, env=env)

    def cache(self, site: str) -> Any:
        return redis.Redis(host=DOOR[site], port=CACHE, password="redis-secret", decode_responses=True)

    def close(self) -> None:
        if self.lag is not None:
            self.lag.close()
        for process in self.processes:
            process.kill()
            process.wait(60)

    # ---- a region that is dark ----

    def dark(self, site: str) -> None:
        """Nothing of the region answers: no API, no database; its load balancer's servers hang on a dead pooler."""
        if self.lag is not None and isinstance(self.rds, AuroraService):
            self.lag.close()
            self.rds.cut_off(REGIONS[site])
        self.rds.away.add(REGIONS[site])
        self.server.set(away=[REGIONS[site]])
        for way in self.plant.ways[{"west": WEST, "east": EAST}[site]]:
            way.open = False
            way.hang_up()
        self.cluster.signal(f"{site}-pg1", signal.SIGSTOP)  # its replica gets nothing any more either

    def gone(self, site: str) -> None:
        """The database of the region is dead, and its control plane lives. Aurora's storage goes on without its server,
        so there the way to the other region is cut as well: else nothing says that it is no matter of one server.
        """
        self.cluster.command("kill", f"{site}-pg1")
        if isinstance(self.rds, AuroraService):
            self.rds.cut_off(REGIONS[site])

    # ---- the system file, for this account ----

    def system(self, folder: Path) -> Path:
        """The shipped files with what one changes for an account. Returns the folder."""
        folder.mkdir()
        shipped = places.data("runbooks") / self.variant.folder
        for book in (f.stem for f in shipped.glob("*.yaml") if f.stem not in ("system", "triggers")):
            (folder / f"{book}.yaml").write_text((shipped / f"{book}.yaml").read_text())
        text = (shipped / "system.yaml").read_text().replace(self.variant.folder, "event-venue")
        text = text.replace("event-venue", "venue")
        for site, region in (("us-west-2", "west"), ("us-east-2", "east")):
            text = text.replace(site, REGIONS[region])
        yaml = YAML()
        system = yaml.load(text)
        self._adapt(system["components"])
        with (folder / "system.yaml").open("w") as file:
            yaml.dump(system, file)
        return folder

    def _adapt(self, parts: Any) -> None:
        like = self.venue.settings()
        for site, node in parts["database"]["nodes"].items():
            node.update(
                {
                    k: like["nodes"][site][k]
                    for k in ("address", "from", "quarantine", "reader")
                    if k in like["nodes"][site]
                }
            )
            node.pop("replica", None)
        of_its_own = ("nodes", "password", "connect_timeout")
        parts["database"].update({k: v for k, v in like.items() if k not in of_its_own}, engine_version="15")
        # What is dark is waited for that long, and a slow machine may need it.
        parts["database"].update(connect_timeout="2s", timeout="20s", stale_after="3s")
        parts["pooler"]["sites"] = {s: f"{d}:{POOLER}" for s, d in DOOR.items()}
        parts["cache"]["sites"] = {s: {"address": f"{d}:{CACHE}"} for s, d in DOOR.items()}
        parts["cdn"]["distribution"] = self.edge
        for site, origin in parts["cdn"]["sites"].items():
            origin["check"] = f"http://{DOOR[site]}:{HTTP}/healthz"
        self._dns(parts)

    def _dns(self, parts: Any) -> None:
        aliases = {s: {"alias": {"hosted_zone": LB_ZONE, "name": f"{d}."}} for s, d in DOOR.items()}
        parts["dns"].update(
            hosted_zone=self.zone, servers=list(self.zones.servers), resolvers=[self.zones.servers[1]], poll="50ms",
            dns_timeout="10s",
        )  # fmt: skip
        parts["dns"]["names"]["app.venue.example"]["A"] = aliases

    # ---- how it stands ----

    def answers(self) -> set[str]:
        """The sites that every name server leads a client to."""
        found = set()
        for server in self.zones.servers:
            host, _, port = server.rpartition(":")
            reply = dns.query.udp(dns.message.make_query(NAME, "A"), host, port=int(port), timeout=30)
            found |= {str(r) for rrset in reply.answer for r in rrset}
        return {s for s, d in DOOR.items() if d in found}

    def origin(self) -> str:
        config = self.server.client("cloudfront", "us-east-1").get_distribution_config(Id=self.edge)[
            "DistributionConfig"
        ]
        return str(config["DefaultCacheBehavior"]["TargetOriginId"])

    def versions(self, site: str) -> set[str]:
        """Of the launch template, that the site's servers run."""
        groups = self.server.client("autoscaling", REGIONS[site]).describe_auto_scaling_groups()["AutoScalingGroups"]
        return {i["LaunchTemplate"]["Version"] for i in groups[0]["Instances"]}

    def served(self, site: str, requests: int, errors: int) -> None:
        """What the load balancer tells CloudWatch of the last minutes, in addition to what it told before."""
        watch, now = self.server.client("cloudwatch", REGIONS[site]), datetime.now(UTC)
        name = f"app/venue-{site}/{BALANCER[site]}"
        values = {"RequestCount": requests, "HTTPCode_Target_5XX_Count": errors, "TargetResponseTime": 0.1}
        points = [
            {
                "MetricName": metric,
                "Dimensions": [{"Name": "LoadBalancer", "Value": name}],
                "Timestamp": now - timedelta(minutes=m),
                "Value": value,
            }
            for metric, value in values.items()
            for m in range(3)
        ]
        watch.put_metric_data(Namespace="AWS/ApplicationELB", MetricData=points)

    def weights(self, site: str) -> dict[str, int]:
        """Target group -> its weight, at the balancer's one listener."""
        elb = self.server.client("elbv2", REGIONS[site])
        (balancer,) = elb.describe_load_balancers(Names=[f"venue-{site}"])["LoadBalancers"]
        (listener,) = elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
        given = listener["DefaultActions"][0]["ForwardConfig"]["TargetGroups"]
        return {g["TargetGroupArn"].split("/")[1].removeprefix(f"venue-{site}-"): g["Weight"] for g in given}

    def canary(self, site: str, *addresses: str) -> None:
        """These are the targets of the canary's group."""
        elb = self.server.client("elbv2", REGIONS[site])
        (group,) = elb.describe_target_groups(Names=[f"venue-{site}-canary"])["TargetGroups"]
        elb.register_targets(TargetGroupArn=group["TargetGroupArn"], Targets=[{"Id": a, "Port": 80} for a in addresses])

    def desired(self, site: str) -> int:
        groups = self.server.client("autoscaling", REGIONS[site]).describe_auto_scaling_groups()
        return int(groups["AutoScalingGroups"][0]["DesiredCapacity"])

    def writers(self) -> set[str]:
        """Sites whose database takes a client's write over its endpoint, through either way to it."""
        found = set()
        for site, (instance, node) in {"west": (WEST, "west-pg1"), "east": (EAST, "east-pg1")}.items():
            if not any(way.open for way in self.plant.ways[instance]):
                continue
            asked = self.cluster.query(
                node, "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool"
            )
            found |= set() if asked[0][0] else {site}
        return found

    def source(self, site: str) -> str | None:
        s3 = self.server.client("s3", REGIONS[site])
        try:
            tags = s3.get_bucket_tagging(Bucket=f"venue-{site}")["TagSet"]
        except s3.exceptions.ClientError:
            return None
        return next((t["Value"] for t in tags if t["Key"] == "relight-source"), None)


class Project(Account):
    """The system with its database at Supabase: real PostgreSQL, and real WAL to go back in."""

    def __init__(self, server: Any, api: Supabase, zones: Zones, cluster: Any, folder: Path) -> None:
        plant: Any = SimpleNamespace(cluster=cluster, ways={})
        super().__init__(server, api, zones, plant, folder, variant=SUPABASE)  # type: ignore[arg-type]
        self.api = api
        api.on_restore = self.restored

    def build(self) -> None:
        self.server.set(settle_s=0.0)
        self._names()
        cluster = self.cluster
        with cluster.admin("west-pg1") as admin:
            admin.execute("ALTER DATABASE postgres OWNER TO relight")  # as it is at Supabase
            admin.execute("CREATE ROLE app")
            admin.execute((APP / "schema.sql").read_text())
            admin.execute("GRANT app TO relight")
        cluster.command("stop", "west-pg1")
        self.base = cluster.folder / "base"  # the newest backup; what came after it is in the WAL
        cluster._run("cp", "-a", str(cluster._data("west-pg1")), str(self.base))
        cluster.command("start", "west-pg1")
        self._bouncer("west", f"127.0.8.{NODES['west-pg1'][1]}:{PORT}")
        self._app("west")
        ground.until(lambda: ground.listening((DOOR["west"], HTTP)))

    def restored(self, unix: int) -> None:
        """The base, and the WAL up to that moment, on a new timeline."""
        cluster, data = self.cluster, self.cluster._data("west-pg1")
        cluster.command("stop", "west-pg1")
        late = data.with_name("late")
        data.rename(late)
        cluster._run("cp", "-a", str(self.base), str(data))
        target = f"recovery_target_time = '{datetime.fromtimestamp(unix, UTC).isoformat()}'"
        wal = f"restore_command = 'cp {late}/pg_wal/%f %p'"
        (data / "postgresql.auto.conf").write_text(f"{wal}\n{target}\nrecovery_target_action = 'promote'\n")
        (data / "recovery.signal").touch()
        for name in ("postgresql.auto.conf", "recovery.signal"):
            cluster._own(data / name, 0o600)
        cluster.command("start", "west-pg1")
        ground.until(lambda: not cluster.query("west-pg1", "SELECT pg_is_in_recovery()")[0][0])

    def _adapt(self, parts: Any) -> None:
        for unused in ("traffic", "capacity", "storage"):  # no step of the restore is about them
            del parts[unused]
        west, east = (f"127.0.8.{NODES[n][1]}:{PORT}" for n in ("west-pg1", "east-pg1"))
        nodes = parts["database"]["nodes"]
        nodes["west"].update({"address": west, "from": {"east": f"127.0.8.1{NODES['west-pg1'][1]}:{PORT}"}})
        nodes["east"]["address"] = east
        parts["database"].update(
            project=REF, name="venue", organization=ORGANIZATION, token="env:SUPABASE_TOKEN", api=self.api.url,
            user="relight", password=f"file:{self.cluster.folder}/relight", sslmode="disable", timeout="20s",
            poll="50ms", patience="5s", build_timeout="60s",
        )  # fmt: skip
        self._dns(parts)
