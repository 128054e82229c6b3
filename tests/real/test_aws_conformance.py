"""The front itself: it refuses what the model does not allow, passes on the rest, and makes the ordered faults."""

from __future__ import annotations

import boto3
import httpx
import pytest
from aws import REGION
from aws_conformance import Refused, front
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

pytestmark = pytest.mark.real
CONTROL = "arn:aws:route53-recovery-control::123456789012:controlpanel/abc/routingcontrol/def"


def client(service, read_timeout=60, **more):
    config = Config(retries={"total_max_attempts": 1}, read_timeout=read_timeout, **more)
    return boto3.session.Session().client(service, region_name=REGION, config=config)


def test_what_no_handler_answers_goes_to_the_server_behind(aws):
    with front("sqs", aws.url) as it:
        sqs = client("sqs")
        sqs.create_queue(QueueName="q")
        assert aws.client("sqs").list_queues()["QueueUrls"][0].endswith("/q")
        assert it.operations() == ["CreateQueue"]
        assert it.heard[0].params == {"QueueName": "q"}
        sqs.close()


READS = {
    "elbv2": "describe_load_balancers",
    "autoscaling": "describe_auto_scaling_groups",
    "rds": "describe_db_instances",
    "cloudwatch": "describe_alarms",
    "ssm": "describe_parameters",
    "route53": "list_hosted_zones",
    "cloudfront": "list_distributions",
    "s3": "list_buckets",
}


@pytest.mark.parametrize(("service", "call"), READS.items())
def test_every_protocol_is_read_and_passed_on(aws, service, call):
    with front(service, aws.url) as it:
        one = client(service)  # moto reads a service's code at its first call
        assert getattr(one, call)()["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert len(it.heard) == 1
        one.close()


def test_faults_in_order(aws):
    with front("sqs", aws.url) as it:
        sqs, impatient = client("sqs"), client("sqs", read_timeout=1)
        it.order("CreateQueue", "lost", "dropped", "503", "OverLimit", 4.0)
        with pytest.raises(ConnectionClosedError):
            sqs.create_queue(QueueName="lost")
        with pytest.raises(ConnectionClosedError):
            sqs.create_queue(QueueName="dropped")
        for status in (503, 403):  # the model says 403 for OverLimit
            with pytest.raises(ClientError) as e:
                sqs.create_queue(QueueName="refused")
            assert e.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
        assert e.value.response["Error"]["Code"].endswith("OverLimit")
        with pytest.raises(ReadTimeoutError):
            impatient.create_queue(QueueName="slow")
        assert [u.rpartition("/")[2] for u in aws.client("sqs").list_queues()["QueueUrls"]] == ["lost"]
        sqs.close()
        impatient.close()


def test_handlers_answer_and_refuse_in_the_words_of_the_model(aws):
    def get(params):
        if params["RoutingControlArn"] != CONTROL:
            raise Refused("ResourceNotFoundException", "no such", resourceId="x", resourceType="control")
        return {"RoutingControlArn": CONTROL, "RoutingControlState": "On"}

    with front("route53-recovery-cluster") as it:
        it.handlers["GetRoutingControlState"] = get
        arc = client("route53-recovery-cluster")
        assert arc.get_routing_control_state(RoutingControlArn=CONTROL)["RoutingControlState"] == "On"
        with pytest.raises(arc.exceptions.ResourceNotFoundException):
            arc.get_routing_control_state(RoutingControlArn=CONTROL + "x")
        arc.close()


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"RoutingControlArn": "no arn!", "RoutingControlState": "On"}, "does not match"),
        ({"RoutingControlArn": CONTROL, "RoutingControlState": "Sideways"}, "expected one of"),
        ({"RoutingControlArn": CONTROL}, "Missing required"),
    ],
)
def test_what_the_model_does_not_allow_is_refused_and_fails_the_test(aws, params, why):
    def ask():
        with front("route53-recovery-cluster") as it:
            arc = client("route53-recovery-cluster", parameter_validation=False)
            with pytest.raises(ClientError, match="ValidationException"):
                arc.update_routing_control_state(**params)
            arc.close()
            assert it.operations() == []

    with pytest.raises(AssertionError, match=why):
        ask()


def test_what_is_no_operation_or_not_signed_fails_the_test(aws):
    with pytest.raises(AssertionError, match="no operation"), front("route53", aws.url) as it:
        assert httpx.get(it.url + "/2013-04-01/nothing").status_code == 404
    with pytest.raises(AssertionError, match="not signed"), front("route53", aws.url) as it:
        assert httpx.get(it.url + "/2013-04-01/hostedzone").status_code == 400
