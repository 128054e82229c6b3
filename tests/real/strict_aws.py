"""moto's server with what it leaves out of ELBv2, Auto Scaling, CloudFront, S3, CloudWatch, SNS, IAM and more.

A process of its own: ``python strict_aws.py HOST PORT``. Every difference from moto 5.2.5 is one class below, with the
page of the API reference that documents the behaviour. ``POST /strict`` takes JSON: ``{"fault": {operation, kind,
times, after}}`` (kind ``throttle``, ``lose``: done, but the connection closes without a reply, ``fail``: HTTP 500 and
nothing done, or an error code to be refused with), ``{"set": {…}}`` of ``State``, ``{"reset": true}``.
"""

from __future__ import annotations

import io
import json
import re
import socket
import sys
import time
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from moto.autoscaling.models import FakeAutoScalingGroup, InstanceState
from moto.autoscaling.responses import AutoScalingResponse
from moto.cloudfront import models as cloudfront
from moto.cloudwatch.models import CloudWatchBackend
from moto.cloudwatch.responses import CloudWatchResponse
from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult, EmptyResult
from moto.elbv2.models import FakeHealthStatus, FakeTargetGroup
from moto.elbv2.responses import ELBV2Response
from moto.iam.models import IAMBackend
from moto.iam.responses import IamResponse
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import FakeKey
from moto.s3.responses import S3Response
from moto.servicequotas.models import ServiceQuotasBackend
from moto.sns.responses import SNSResponse
from moto.ssm.responses import SimpleSystemManagerResponse
from werkzeug.serving import run_simple


@dataclass
class State:
    """What a test says of the world; ``*_s`` are seconds that something takes."""

    settle_s: float = 0.3
    unhealthy: list[str] = field(default_factory=list)
    """Targets that fail their check: instance ids or addresses; ``*`` for all."""
    page: int = 400
    no_capacity: str = ""
    """The message of the failed activity when nothing can be launched."""
    vcpus: float = 64.0
    vcpus_used: float = 0.0
    limits: dict[str, int] = field(default_factory=dict)
    """ELBv2: name of a limit -> its maximum, where it is not moto's."""
    command: dict[str, Any] = field(default_factory=dict)
    """status, code, stdout, stderr of what a command does; ``lost`` for one that never ends."""
    refresh: str = "Successful"
    """How an instance refresh ends."""
    away: list[str] = field(default_factory=list)
    """Regions of which nothing answers: connections are closed."""
    replication: dict[str, str] = field(default_factory=dict)
    """S3: "BUCKET/KEY" -> replication status; BUCKET alone for every other object of it."""
    pending: list[str] = field(default_factory=list)
    """SNS: endpoints that never confirmed their subscription."""
    advisor: dict[str, str] | None = None
    """IAM: service -> when the principal last asked it for something, "" for never; None: as moto, not implemented."""
    root_keys: int = 0
    """IAM: active access keys of the root user."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    looked: list[str] = field(default_factory=list)
    launching: dict[str, float] = field(default_factory=dict)
    activities: list[dict[str, Any]] = field(default_factory=list)
    refreshes: list[dict[str, Any]] = field(default_factory=list)


STATE = State()


def pages(result: list[Any], token: str | None) -> tuple[list[Any], str | None]:
    start = int(token or 0)
    end = start + STATE.page
    return result[start:end], str(end) if end < len(result) else None


# ---- ELBv2: initial, draining, unhealthy; every list in pages ----


def health_for(self: FakeTargetGroup, target: dict[str, Any], ec2_backend: Any) -> FakeHealthStatus:
    """docs: *Target health status*; a deregistered target drains for its group's delay, then it is unused."""
    found = was_health_for(self, target, ec2_backend)
    name, since = str(found.instance_id), self.__dict__.setdefault("since", {})
    if found.status == "unused" and name in since:
        found.status = "draining" if time.monotonic() < since[name] + STATE.settle_s else "unused"
        found.reason = "Target.DeregistrationInProgress" if found.status == "draining" else "Target.NotRegistered"
    elif {name, "*"} & set(STATE.unhealthy):
        found.status, found.reason = "unhealthy", "Target.FailedHealthChecks"
    return found


def deregister(self: FakeTargetGroup, targets: list[dict[str, Any]]) -> None:
    for target in targets:
        if target["Id"] in self.targets:
            was_deregister(self, [target])
            self.__dict__.setdefault("since", {})[target["Id"]] = time.monotonic()


was_health_for, FakeTargetGroup.health_for = FakeTargetGroup.health_for, health_for
was_deregister, FakeTargetGroup.deregister = FakeTargetGroup.deregister, deregister


def describe_target_health(self: ELBV2Response) -> ActionResult:
    """Without a list of targets: those that drain too (DescribeTargetHealth)."""
    arn = self._get_param("TargetGroupArn")
    group = self.elbv2_backend.target_groups.get(arn)
    targets = self._get_param("Targets", [])
    if group is not None and not targets:
        leaving = group.__dict__.get("since", {})
        targets = [*group.targets.values()]
        targets += [{"Id": t, "Port": group.port} for t in leaving if t not in group.targets]
    found = self.elbv2_backend.describe_target_health(arn, targets) if targets or group is None else []
    return ActionResult({"TargetHealthDescriptions": [f for f in found if f.status != "unused"]})


def describe_listeners(self: ELBV2Response) -> ActionResult:
    every = self.elbv2_backend.describe_listeners(
        self._get_param("LoadBalancerArn"), self._get_param("ListenerArns", [])
    )
    found, token = pages(every, self._get_param("Marker"))
    return ActionResult({"Listeners": found, "NextMarker": token})


def describe_target_groups(self: ELBV2Response) -> ActionResult:
    every = self.elbv2_backend.describe_target_groups(
        self._get_param("LoadBalancerArn"), self._get_param("TargetGroupArns", []), self._get_param("Names", [])
    )
    found, token = pages(list(every), self._get_param("Marker"))
    return ActionResult({"TargetGroups": found, "NextMarker": token})


for patched in (describe_target_health, describe_listeners, describe_target_groups):
    setattr(ELBV2Response, patched.__name__, patched)


# ---- Auto Scaling: launching takes time, activities, instance refresh, DefaultCooldown ----


class Fault(ServiceException):
    """Any error of the API by its code."""


def launch(self: FakeAutoScalingGroup, *args: Any, **more: Any) -> None:
    if STATE.no_capacity:
        now = datetime.now(UTC)
        STATE.activities.insert(
            0,
            {
                "ActivityId": f"a{len(STATE.activities)}",
                "AutoScalingGroupName": self.name,
                "Cause": "desired capacity changed",
                "Description": "Launching a new EC2 instance.  Status Reason: " + STATE.no_capacity,
                "StartTime": now,
                "EndTime": now,
                "StatusCode": "Failed",
                "StatusMessage": STATE.no_capacity,
                "Progress": 100,
                "Details": '{"Availability Zone": "eu-west-1a"}',
            },
        )
        return
    before = {s.instance.id for s in self.instance_states}
    was_launch(self, *args, **more)
    for state in self.instance_states:
        if state.instance.id not in before:
            STATE.launching[state.instance.id] = time.monotonic() + STATE.settle_s


was_launch, FakeAutoScalingGroup.replace_autoscaling_group_instances = (
    FakeAutoScalingGroup.replace_autoscaling_group_instances,
    launch,
)


def version_of(group: FakeAutoScalingGroup) -> str:
    template = group.launch_template
    return str((template or {}).get("Version") or group.__dict__.get("version") or "1")


def describe_auto_scaling_groups(self: AutoScalingResponse) -> ActionResult:
    names = self._get_param("AutoScalingGroupNames", [])
    for group in self.autoscaling_backend.describe_auto_scaling_groups(names):
        advance(group)
        for state in group.instance_states:
            if time.monotonic() < STATE.launching.get(state.instance.id, 0.0):
                state.lifecycle_state = "Pending"
            elif state.lifecycle_state == "Pending":
                state.lifecycle_state = "InService"
    return was_describe_groups(self)


was_describe_groups = AutoScalingResponse.describe_auto_scaling_groups


def describe_scaling_activities(self: AutoScalingResponse) -> ActionResult:
    name = self._get_param("AutoScalingGroupName")
    every = [a for a in STATE.activities if a["AutoScalingGroupName"] == name]
    found, token = pages(every, self._get_param("NextToken"))
    return ActionResult({"Activities": found, "NextToken": token})


def update_auto_scaling_group(self: AutoScalingResponse) -> ActionResult:
    """MaxSize below the desired capacity lowers it (UpdateAutoScalingGroup); moto knows no DefaultCooldown."""
    result = was_update(self)
    group = self.autoscaling_backend.autoscaling_groups[self._get_param("AutoScalingGroupName")]
    cooldown = self._get_int_param("DefaultCooldown")
    if cooldown is not None:
        group.default_cooldown = cooldown
    return result


was_update = AutoScalingResponse.update_auto_scaling_group


def set_desired_capacity(self: AutoScalingResponse) -> ActionResult:
    """Outside of the group's own limits it is a ValidationError (SetDesiredCapacity)."""
    group = self.autoscaling_backend.autoscaling_groups[self._get_param("AutoScalingGroupName")]
    wanted = self._get_int_param("DesiredCapacity")
    if not group.min_size <= wanted <= group.max_size:
        raise Fault("ValidationError", f"New SetDesiredCapacity value {wanted} is outside of the group's limits.")
    return was_set_desired(self)


was_set_desired = AutoScalingResponse.set_desired_capacity


def advance(group: FakeAutoScalingGroup) -> None:
    for refresh in STATE.refreshes:
        if refresh["AutoScalingGroupName"] != group.name or refresh["Status"] not in (
            "InProgress",
            "RollbackInProgress",
        ):
            continue
        if time.monotonic() < refresh["until"]:
            continue
        back = refresh["Status"] == "RollbackInProgress"
        refresh["Status"] = "RollbackSuccessful" if back else STATE.refresh
        refresh["PercentageComplete"] = 100
        if refresh["Status"] in ("Successful", "RollbackSuccessful"):
            group.__dict__["version"] = refresh["before"] if back else refresh["version"]


def start_instance_refresh(self: AutoScalingResponse) -> ActionResult:
    """One at a time (StartInstanceRefresh, InstanceRefreshInProgress)."""
    name = self._get_param("AutoScalingGroupName")
    group = self.autoscaling_backend.autoscaling_groups[name]
    going = [r for r in STATE.refreshes if r["AutoScalingGroupName"] == name and "InProgress" in r["Status"]]
    if going:
        raise Fault("InstanceRefreshInProgress", "An Instance Refresh is already in progress")
    wanted = self._get_param("DesiredConfiguration", {})
    refresh = {
        "InstanceRefreshId": f"refresh-{len(STATE.refreshes)}",
        "AutoScalingGroupName": name,
        "Status": "InProgress",
        "StartTime": datetime.now(UTC),
        "PercentageComplete": 0,
        "InstancesToUpdate": len(group.instance_states),
        "DesiredConfiguration": wanted,
        "Preferences": self._get_param("Preferences", {}),
        "version": str(wanted["LaunchTemplate"]["Version"]),
        "before": group.__dict__.get("version", "1"),
        "until": time.monotonic() + STATE.settle_s,
    }
    STATE.refreshes.insert(0, refresh)
    return ActionResult({"InstanceRefreshId": refresh["InstanceRefreshId"]})


def describe_instance_refreshes(self: AutoScalingResponse) -> ActionResult:
    name = self._get_param("AutoScalingGroupName")
    advance(self.autoscaling_backend.autoscaling_groups[name])
    every = [r for r in STATE.refreshes if r["AutoScalingGroupName"] == name]
    found, token = pages(every, self._get_param("NextToken"))
    return ActionResult({"InstanceRefreshes": found, "NextToken": token})


def rollback_instance_refresh(self: AutoScalingResponse) -> ActionResult:
    name = self._get_param("AutoScalingGroupName")
    going = [r for r in STATE.refreshes if r["AutoScalingGroupName"] == name and r["Status"] == "InProgress"]
    if not going:
        raise Fault("ActiveInstanceRefreshNotFound", "No in progress or pending Instance Refresh found")
    going[0] |= {"Status": "RollbackInProgress", "until": time.monotonic() + STATE.settle_s}
    return ActionResult({"InstanceRefreshId": going[0]["InstanceRefreshId"]})


for patched in (
    describe_auto_scaling_groups, describe_scaling_activities, update_auto_scaling_group, set_desired_capacity,
    start_instance_refresh, describe_instance_refreshes, rollback_instance_refresh,
):  # fmt: skip
    setattr(AutoScalingResponse, patched.__name__, patched)


def launch_template(self: Any) -> dict[str, Any] | None:
    found = was_launch_template.fget(self)
    return found and {**found, "Version": self.auto_scaling_group.__dict__.get("version", "1")}


was_launch_template = InstanceState.__dict__["launch_template"]
InstanceState.launch_template = property(launch_template)


# ---- CloudFront: If-Match is compared, a change is InProgress for a while, a caller reference counts once ----


class Precondition(ServiceException):
    code = "PreconditionFailed"


def update_distribution(self: Any, dist_config: Any, _id: str, if_match: str) -> Any:
    """UpdateDistribution: 412 PreconditionFailed for another ETag than the newest."""
    if _id in self.distributions and if_match and if_match != self.distributions[_id].etag:
        raise Precondition("PreconditionFailed", "The request failed because it didn't meet the preconditions")
    dist, location, _ = was_update_distribution(self, dist_config, _id, if_match)
    dist.etag = cloudfront.random_id()
    dist.__dict__["settled_at"] = time.monotonic() + STATE.settle_s
    return dist, location, dist.etag


def create_invalidation(self: Any, dist_id: str, paths: list[str], caller_ref: str) -> Any:
    """CreateInvalidation: the same reference and paths is the same invalidation; other paths are refused."""
    for known in self.invalidations.get(dist_id, []):
        if known.caller_ref == caller_ref:
            if sorted(known.paths) != sorted(paths):
                raise Fault("InvalidArgument", "InvalidationBatchAlreadyExists: the caller reference was used")
            return known
    made = was_create_invalidation(self, dist_id, paths, caller_ref)
    made.__dict__["settled_at"] = time.monotonic() + STATE.settle_s
    return made


def settled(going: str, over: str) -> property:
    def status(self: Any) -> str:
        return going if time.monotonic() < self.__dict__.get("settled_at", 0.0) else over

    return property(status, lambda _self, _value: None)


was_update_distribution = cloudfront.CloudFrontBackend.update_distribution
cloudfront.CloudFrontBackend.update_distribution = update_distribution
was_create_invalidation = cloudfront.CloudFrontBackend.create_invalidation
cloudfront.CloudFrontBackend.create_invalidation = create_invalidation
cloudfront.Distribution.status = settled("InProgress", "Deployed")
cloudfront.Invalidation.status = settled("InProgress", "Completed")


# ---- S3: objects say how far their replication is (HeadObject, x-amz-replication-status) ----


def response_dict(self: FakeKey) -> dict[str, Any]:
    status = STATE.replication.get(f"{self.bucket_name}/{self.name}", STATE.replication.get(str(self.bucket_name)))
    more = {"x-amz-replication-status": status} if status else {}
    return {**was_response_dict.fget(self), **more}


was_response_dict = FakeKey.__dict__["response_dict"]
FakeKey.response_dict = property(response_dict)


def get_bucket_replication(self: S3Response) -> Any:
    """moto answers that each rule copies everything, whatever its filter says."""
    kept = self.backend.get_bucket_replication(self.bucket_name)
    if not kept:
        return was_get_replication(self)
    self.data["Action"] = "GetBucketReplication"
    found = {"ReplicationConfiguration": {"Role": kept["Role"], "Rules": kept["Rule"]}}
    return self.serialized(ActionResult(found))


was_get_replication, S3Response.get_bucket_replication = S3Response.get_bucket_replication, get_bucket_replication


# ---- CloudWatch: percentiles of GetMetricData, which moto does not compute; the largest value stands for them ----


def get_metric_data(self: CloudWatchBackend, queries: list[dict[str, Any]], *args: Any, **more: Any) -> Any:
    for query in queries:
        stat = query.get("MetricStat") or {}
        if str(stat.get("Stat", "")).startswith("p"):
            stat["Stat"] = "Maximum"
    return was_metric_data(self, queries, *args, **more)


was_metric_data, CloudWatchBackend.get_metric_data = CloudWatchBackend.get_metric_data, get_metric_data


# ---- CloudWatch: composite alarms, which moto does not make; kinds of alarms; actions of another region ----


def put_composite_alarm(self: CloudWatchResponse) -> ActionResult:
    """PutCompositeAlarm: alarms that it names must exist; an update ignores Tags and leaves the state."""
    backend, name, rule = self.cloudwatch_backend, self._get_param("AlarmName"), self._get_param("AlarmRule")
    suppressor = self._get_param("ActionsSuppressor")
    named = re.findall(r'(?:ALARM|OK|INSUFFICIENT_DATA)\("([^"]+)"\)', rule)
    missing = [n for n in (*named, *([suppressor] if suppressor else [])) if n not in backend.alarms]
    if missing or not named:
        raise Fault("ValidationError", f"AlarmRule must not contain alarms that do not exist: {missing}")
    wants = ("ActionsSuppressorWaitPeriod", "ActionsSuppressorExtensionPeriod")
    if suppressor and None in [self._get_param(w) for w in wants]:
        raise Fault("ValidationError", "ActionsSuppressor needs its two periods")
    before = backend.alarms.get(name)
    if before is not None and before.rule is None:
        raise Fault("ValidationError", f"an alarm {name} of another type exists")
    put_alarm(self, None if before is None else before.state_value)
    made = backend.alarms[name]
    made.actions_suppressor = suppressor
    made.actions_suppressor_wait_period, made.actions_suppressor_extension_period = (self._get_param(w) for w in wants)
    return EmptyResult()


def put_metric_alarm(self: CloudWatchResponse) -> ActionResult:
    before = self.cloudwatch_backend.alarms.get(self._get_param("AlarmName"))
    if before is not None and before.rule is not None:
        raise Fault("ValidationError", "an alarm of another type has this name")
    return put_alarm(self, None if before is None else before.state_value)


def put_alarm(self: CloudWatchResponse, state: str | None) -> ActionResult:
    for key in ("AlarmActions", "OKActions", "InsufficientDataActions"):
        for action in self._get_param(key, []):
            if action.split(":")[3] != self.region:
                said = f"Invalid region {action.split(':')[3]} specified. Only {self.region} is supported."
                raise Fault("ValidationError", said)
    backend, name = self.cloudwatch_backend, self._get_param("AlarmName")
    arn = backend.alarms[name].alarm_arn if state else ""
    tags = dict(backend.list_tags_for_resource(arn)) if state else {}
    result = was_put_alarm(self)
    made = backend.alarms[name]
    made.state_value = state or "INSUFFICIENT_DATA"
    if state:
        backend.untag_resource(arn, list(backend.list_tags_for_resource(arn)))
        backend.tag_resource(arn, tags)
    return result


def describe_alarms(self: CloudWatchResponse) -> ActionResult:
    """DescribeAlarms: metric alarms only, where AlarmTypes does not ask for others."""
    found = was_describe_alarms(self)._result
    kinds = self._get_param("AlarmTypes") or ["MetricAlarm"]
    return ActionResult({k: v if k.removesuffix("s") in kinds else [] for k, v in found.items()})


was_put_alarm, was_describe_alarms = CloudWatchResponse.put_metric_alarm, CloudWatchResponse.describe_alarms
for patched in (put_composite_alarm, put_metric_alarm, describe_alarms):
    setattr(CloudWatchResponse, patched.__name__, patched)


# ---- SNS: a subscription that was not confirmed has no ARN (ListSubscriptionsByTopic) ----


def list_subscriptions_by_topic(self: SNSResponse) -> ActionResult:
    found, token = self.backend.list_subscriptions_by_topic(
        self._get_param("TopicArn"), next_token=self._get_param("NextToken")
    )
    every = [
        {
            "SubscriptionArn": "PendingConfirmation" if s.endpoint in STATE.pending else s.arn,
            "Owner": s.owner,
            "Protocol": s.protocol,
            "Endpoint": s.endpoint,
            "TopicArn": s.topic_arn,
        }
        for s in found
    ]
    return ActionResult({"Subscriptions": every, "NextToken": token})


SNSResponse.list_subscriptions_by_topic = list_subscriptions_by_topic


# ---- IAM: the access advisor, made on request and in pages; the root user is in the credential report ----


def generate_service_last_accessed_details(self: IamResponse) -> ActionResult:
    if STATE.advisor is None:
        raise NotImplementedError("The generate_service_last_accessed_details action has not been implemented")
    return ActionResult({"JobId": f"job of {self._get_param('Arn')} to be looked at"})


def get_service_last_accessed_details(self: IamResponse) -> ActionResult:
    """IN_PROGRESS at the first look; then two pages, of which each has its own half of the services."""
    job, begun = self._get_param("JobId"), {"JobType": "SERVICE_LEVEL", "JobCreationDate": datetime.now(UTC)}
    if job not in STATE.looked:
        STATE.looked.append(job)
        none: dict[str, Any] = {"ServicesLastAccessed": [], "JobCompletionDate": datetime.now(UTC)}
        return ActionResult({"JobStatus": "IN_PROGRESS", **begun, **none})
    every = [
        {"ServiceName": n, "ServiceNamespace": n, **({"LastAuthenticated": datetime.fromisoformat(at)} if at else {})}
        for n, at in (STATE.advisor or {}).items()
    ]
    half, second = (len(every) + 1) // 2, self._get_param("Marker") == "half"
    page: dict[str, Any] = {"ServicesLastAccessed": every[half:] if second else every[:half], "IsTruncated": not second}
    page |= {} if second else {"Marker": "half"}
    return ActionResult({"JobStatus": "COMPLETED", **begun, "JobCompletionDate": datetime.now(UTC), **page})


def credential_report(self: IAMBackend) -> str:
    """docs: *Getting credential reports for your AWS account*, the first line of which is the root user's."""
    head, _, rest = was_credential_report(self).partition("\n")
    root = dict.fromkeys(head.split(","), "not_supported")
    root |= {"user": "<root_account>", "user_creation_time": "2014-09-01T22:28:48+00:00"}
    root |= {f"access_key_{n}_active": str(STATE.root_keys >= n).lower() for n in (1, 2)}
    return f"{head}\n{','.join(root.values())}\n{rest}"


was_credential_report, IAMBackend.get_credential_report = IAMBackend.get_credential_report, credential_report
for patched in (generate_service_last_accessed_details, get_service_last_accessed_details):
    setattr(IamResponse, patched.__name__, patched)


# ---- Service Quotas ----


def get_service_quota(self: Any, service_code: str, quota_code: str) -> dict[str, Any]:
    if (service_code, quota_code) == ("ec2", "L-1216C47A"):
        return {
            "ServiceCode": "ec2",
            "QuotaCode": quota_code,
            "QuotaName": "Standard",
            "Value": STATE.vcpus,
            "UsageMetric": {
                "MetricNamespace": "AWS/Usage",
                "MetricName": "ResourceCount",
                "MetricDimensions": {"Class": "Standard/OnDemand", "Service": "EC2", "Type": "Resource"},
                "MetricStatisticRecommendation": "Maximum",
            },
        }
    return was_quota(self, service_code, quota_code)


def get_metric_statistics(self: CloudWatchResponse) -> ActionResult:
    """Of AWS/Usage, which AWS itself writes; less than nothing used stands for no sample."""
    if self._get_param("Namespace") != "AWS/Usage":
        return was_statistics(self)
    point = {"Timestamp": datetime.now(UTC), "Maximum": STATE.vcpus_used, "Unit": "None"}
    return ActionResult({"Label": "ResourceCount", "Datapoints": [point] if STATE.vcpus_used >= 0 else []})


was_statistics = CloudWatchResponse.get_metric_statistics
CloudWatchResponse.get_metric_statistics = get_metric_statistics


def describe_account_limits(self: ELBV2Response) -> ActionResult:
    found = was_limits(self)._result["Limits"]
    return ActionResult({"Limits": [{**d, "Max": str(STATE.limits.get(d["Name"], d["Max"]))} for d in found]})


was_limits, ELBV2Response.describe_account_limits = ELBV2Response.describe_account_limits, describe_account_limits
was_quota, ServiceQuotasBackend.get_service_quota = ServiceQuotasBackend.get_service_quota, get_service_quota


# ---- Systems Manager: a command is not there at once, then it runs, then it ends; invocations are listed ----


def invocation(command: Any, instance: str) -> dict[str, Any]:
    age, how = time.monotonic() - command.__dict__.setdefault("at", time.monotonic()), STATE.command
    status = (
        "Pending"
        if age < STATE.settle_s / 2
        else "InProgress"
        if age < STATE.settle_s
        else how.get("status", "Success")
    )
    if how.get("lost"):
        status = "InProgress"
    over = status not in ("Pending", "InProgress")
    return {
        "CommandId": command.command_id,
        "InstanceId": instance,
        "Comment": command.comment,
        "DocumentName": command.document_name,
        "RequestedDateTime": command.requested_date_time,
        "Status": status,
        "StatusDetails": how.get("details", status) if over else status,
        "ResponseCode": how.get("code", 0) if over else -1,
        "StandardOutputContent": how.get("stdout", "") if over else "",
        "StandardErrorContent": how.get("stderr", "") if over else "",
    }


def get_command_invocation(self: SimpleSystemManagerResponse) -> ActionResult:
    """InvocationDoesNotExist right after SendCommand: the API is eventually consistent."""
    command = self.ssm_backend.get_command_by_id(self._get_param("CommandId"))
    asked = command.__dict__["asked"] = command.__dict__.get("asked", 0) + 1
    instance = self._get_param("InstanceId")
    if asked == 1 or instance not in command.instance_ids:
        raise Fault("InvocationDoesNotExist", "An error occurred (InvocationDoesNotExist)")
    return ActionResult(invocation(command, instance))


def list_command_invocations(self: SimpleSystemManagerResponse) -> ActionResult:
    instance, wanted = self._get_param("InstanceId"), self._get_param("CommandId")
    every = [
        invocation(c, i)
        for c in reversed(self.ssm_backend._commands)
        for i in c.instance_ids
        if instance in (None, i) and wanted in (None, c.command_id)
    ]
    found, token = pages(every, self._get_param("NextToken"))
    return ActionResult({"CommandInvocations": found, "NextToken": token})


def cancel_command(self: SimpleSystemManagerResponse) -> ActionResult:
    STATE.command = {"status": "Cancelled", "code": -1}
    return EmptyResult()


for patched in (get_command_invocation, list_command_invocations, cancel_command):
    setattr(SimpleSystemManagerResponse, patched.__name__, patched)


# ---- faults, and the server ----

BASE = "/2020-05-31/distribution/[^/]+"
PATHS = [
    (re.compile(f"{BASE}/config"), {"PUT": "UpdateDistribution", "GET": "GetDistributionConfig"}),
    (re.compile(f"{BASE}/invalidation"), {"POST": "CreateInvalidation", "GET": "ListInvalidations"}),
    (re.compile(f"{BASE}/invalidation/[^/]+"), {"GET": "GetInvalidation"}),
    (re.compile(BASE), {"GET": "GetDistribution"}),
]


def operation(environ: dict[str, Any], body: bytes) -> str:
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        return target.rpartition(".")[2]
    if found := parse_qs(body.decode("utf-8", "replace")).get("Action"):
        return found[0]
    for pattern, methods in PATHS:
        if pattern.fullmatch(environ["PATH_INFO"]):
            return methods.get(environ["REQUEST_METHOD"], "?")
    return "?"


def due(name: str) -> str | None:
    for fault in STATE.faults:
        if fault["operation"] == name and fault.get("times", 1) > 0:
            if fault.get("after", 0) > 0:
                fault["after"] -= 1
                continue
            fault["times"] = fault.get("times", 1) - 1
            return str(fault["kind"])
    return None


def said(code: str, status: int, environ: dict[str, Any], answer: Any) -> list[bytes]:
    line = f"{status} {code}"
    if environ.get("HTTP_X_AMZ_TARGET"):
        answer(line, [("Content-Type", "application/x-amz-json-1.1")])
        return [json.dumps({"__type": code, "message": code}).encode()]
    answer(line, [("Content-Type", "text/xml")])
    return [
        f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{code}</Message></Error>"
        "<RequestId>r</RequestId></ErrorResponse>".encode()
    ]


def control(body: bytes) -> bytes:
    asked = json.loads(body or b"{}")
    if asked.get("reset"):
        STATE.__dict__.update({f.name: getattr(State(), f.name) for f in fields(State)})
    STATE.__dict__.update(asked.get("set", {}))
    if "fault" in asked:
        STATE.faults.append(asked["fault"])
    return json.dumps({"refreshes": len(STATE.refreshes), "faults": STATE.faults}).encode()


def app(moto: Any) -> Any:
    def strict(environ: dict[str, Any], answer: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        if environ["PATH_INFO"] == "/strict":
            answer("200 OK", [("Content-Type", "application/json")])
            return [control(body)]
        scope = environ.get("HTTP_AUTHORIZATION", "").split("/")
        if len(scope) > 2 and scope[2] in STATE.away:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            answer("500 away", [])
            return [b""]
        kind = due(operation(environ, body))
        if kind == "throttle":
            return said("Throttling", 400, environ, answer)
        if kind == "fail":
            return said("InternalFailure", 500, environ, answer)
        if kind not in (None, "lose"):
            return said(str(kind), 400, environ, answer)
        result = moto(environ, answer)
        if kind == "lose":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return result

    return strict


if __name__ == "__main__":
    moto_app = DomainDispatcherApplication(create_backend_app)
    run_simple(sys.argv[1], int(sys.argv[2]), app(moto_app), threaded=True, request_handler=MotoRequestHandler)
