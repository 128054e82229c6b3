import asyncio
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks.database.protocol import NodeView
from tasks.errors import BadInput, Contradiction, NotYet, Rejected
from tasks.traffic import _runtime as runtime
from tasks.traffic._route import primary
from tasks.traffic.haproxy import PROVIDER, _word

SYSTEM = Path(__file__).resolve().parents[2] / "runbooks" / "lab" / "system.yaml"
STATE_COLUMNS = (
    "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight"
    " srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state"
    " bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr"
    " srv_agent_addr srv_agent_port"
)


def state(operational=2, admin=0, result=3, check=6):
    """As HAProxy 2.6 prints it."""
    row = f"3 app 1 west-app1 127.0.7.91 {operational} {admin} 1 1 1 15 {result} 3 {check} 0 0 0 - 8000 - 0 0 - - 0"
    return f"1\n# {STATE_COLUMNS}\n{row}\n\n"


def stat(health=3, rise=2, fall=2, pool="app"):
    return (
        "# pxname,svname,scur,weight,check_status,check_rise,check_fall,check_health,addr,\n"
        f"{pool},west-app1,4,7,L7OK,{rise},{fall},{health},127.0.7.91:8000,\n\n"
    )


def test_one_server():
    (server,) = runtime.servers("app", state(), stat())
    assert (server.name, server.site, server.address) == ("west-app1", "west", "127.0.7.91:8000")
    assert (server.admin, server.up, server.weight, server.sessions) == ("ready", True, 7, 4)


@pytest.mark.parametrize(
    ("mask", "admin"),
    [
        (0x00, "ready"),
        (0x01, "maint"),
        (0x02, "maint"),
        (0x04, "ready"),  # "disabled" in the file, made ready since
        (0x05, "maint"),
        (0x08, "drain"),
        (0x0C, "drain"),
        (0x10, "drain"),
        (0x20, "maint"),
        (0x40, "ready"),
        (0x09, "maint"),
    ],
)
def test_admin_masks(mask, admin):
    assert runtime.servers("app", state(admin=mask), stat())[0].admin == admin


@pytest.mark.parametrize(
    ("operational", "result", "check", "health", "up"),
    [
        (2, 3, 6, 3, True),
        (1, 3, 6, 3, True),
        (0, 2, 6, 0, False),
        (3, 3, 6, 3, False),  # stopping
        (2, 0, 6, 2, False),  # believed to be up, not checked yet
        (2, 3, 6, 2, False),  # left maintenance; what passed was before it
        (2, 2, 6, 2, False),  # failing, not down yet
    ],
)
def test_up_means_checked(operational, result, check, health, up):
    server = runtime.servers("app", state(operational, 0, result, check), stat(health))[0]
    assert server.up is up


def test_without_a_check_haproxy_is_believed():
    row = stat().replace("L7OK,2,2,3", ",,,")
    assert runtime.servers("app", state(result=0, check=0), row)[0].up


def test_rows_of_another_proxy_are_not_this_pool():
    assert runtime.servers("app", state(), stat(pool="db")) == ()


def test_another_format():
    with pytest.raises(Rejected, match="format 1"):
        runtime.states("2\n# be_id\n")


@pytest.mark.parametrize(
    ("said", "error", "says"),
    [
        ("Can't find backend.\n\n", BadInput, "find backend"),
        ("No such server.\n\n", BadInput, "Compare the names"),
        ("Permission denied\n\n", Rejected, "level admin"),
        ("Unknown command: 'x', but …\n  help\n", Rejected, "2.6 or newer"),
        ("Something else\n", Rejected, "was refused: Something else"),
    ],
)
def test_refusals(said, error, says):
    refusal = runtime.refusal("traffic: HAProxy of west", "set x", said)
    assert isinstance(refusal, error)
    assert says in str(refusal)


@pytest.mark.parametrize("text", ["", "a b", "a;b", "a\nb", "a/b"])
def test_names_cannot_carry_commands(text):
    with pytest.raises(BadInput):
        _word(text)


def test_the_lab_loads():
    component = dict(YAML(typ="safe").load(SYSTEM)["components"]["traffic"])
    component.pop("provider")
    assert set(PROVIDER.Settings.model_validate(component).sites) == {"west", "east"}


class Views:
    def __init__(self, *views):
        self.views = {v.node: v for v in views}

    def nodes(self, _site=None):
        return tuple(self.views)

    async def view(self, node, _vantage=None):
        return self.views[node]


def view(node, *, writes=False, **more):
    return NodeView(node, node[:4], "answers", **{"in_recovery": not writes, "read_only": not writes, **more})


@pytest.mark.parametrize(
    ("views", "found"),
    [
        ([view("west-pg1", writes=True, timeline=2), view("east-pg1", timeline=1)], "west-pg1"),
        ([view("west-pg1", in_recovery=False, timeline=1), view("east-pg1", writes=True, timeline=2)], "east-pg1"),
        ([NodeView("west-pg1", "west", "silent"), view("east-pg1", writes=True)], "east-pg1"),
        ([view("west-pg1", writes=True), view("east-pg1", writes=True)], Contradiction),
        ([view("west-pg1", writes=True, timeline=1), view("east-pg1", timeline=2)], Contradiction),
        ([view("west-pg1"), view("east-pg1")], NotYet),
        ([NodeView("west-pg1", "west", "refused")], NotYet),
    ],
)
def test_primary(views, found):
    if isinstance(found, str):
        assert asyncio.run(primary(Views(*views))).node == found
    else:
        with pytest.raises(found):
            asyncio.run(primary(Views(*views)))
