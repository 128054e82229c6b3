# Two commands for a fresh Debian 12 machine: `make drill` and `make test`. Each installs what is missing first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EVERY ?= 8
# A bound, for time: faults evenly of all, crashes too, and drawn schedules, a case.
CLOUD ?= --every 2 --most 30 --depth 5
# Two workers where each can have a network of its own (the lab's addresses are fixed), else one after the other. Most of a
# real test is waiting, so three would end sooner; on two cores they make a bad answer of what is only late.
WORKERS ?= $(shell unshare --net true 2>/dev/null && echo 2 || echo 0)

# Some images set it; then each of the thousand processes that the tests start compiles every module again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install drill test unit check format endurance bench-window bench-warm bench-inbox prove crash lock schema clean

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## install everything that is missing: Debian's packages, the virtual environment, the lab's npm package

$(STAMP): pyproject.toml requirements.lock deployments/lab/install.sh deployments/lab/app/package-lock.json
	bash deployments/lab/install.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable . --group dev
	touch $@

drill: install ## bring up the real two-site system, break its primary site under load, recover it, show the report
	$(BIN)/relight drill

test: install ## every test, on real processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

unit: install ## the tests that need no process
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests/unit

check: install ## lint, types, import rules, shipped files
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	cd deployments/lab && ../../$(BIN)/mypy --strict --ignore-missing-imports *.py
	$(BIN)/python -m pytest -q tests/unit/test_house.py
	$(BIN)/relight validate runbooks

format: install ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

endurance: install ## five failovers there and back for each fault, with figures
	$(BIN)/python tests/benchmarks/endurance.py

PROOFS := prove-failover prove-rejoin prove-event-venue prove-event-venue-aurora prove-event-venue-supabase prove-update prove-migrate
.PHONY: $(PROOFS)
prove: $(PROOFS) ## every shipped runbook against a simulated world in which everything goes wrong; make -j2 prove: two at a time

prove-failover: install
	$(BIN)/relight prove failover --system lab --every $(EVERY) --depth 50

prove-rejoin: install
	$(BIN)/relight prove rejoin --system lab --every $(EVERY) --depth 50

# A bound, for time: 800 events, and some of them are long.
prove-update: install
	$(BIN)/relight prove update --system lab --mode graceful --scenario healthy --every 2 --most 150 --depth 20

prove-migrate: install
	$(BIN)/relight prove migrate --system lab --mode graceful --every 2 --most 40 --depth 10

prove-event-venue prove-event-venue-aurora: prove-%: install
	$(BIN)/relight prove failover --system $* $(CLOUD)
	$(BIN)/relight prove rejoin --system $* --mode forced $(CLOUD)
	$(BIN)/relight prove failover --system $* --mode forced --scenario site-gone --waive fence='the region is dark' $(CLOUD)

prove-event-venue-supabase: install
	$(BIN)/relight prove restore --system event-venue-supabase --mode forced --scenario healthy $(CLOUD)
	$(BIN)/relight prove restore --system event-venue-supabase --mode forced --scenario kill-primary --waive fence='it is dead' $(CLOUD)
	$(BIN)/relight prove update --system event-venue-supabase --mode graceful --scenario healthy $(CLOUD)

crash: install ## the engine killed at every record of a real failover, each in a failover of its own
	RELIGHT_CRASH=all $(BIN)/python -m pytest -s tests/real/test_crash.py

bench-window: install ## what Prefect's window costs a run: no server, a good one, a hung one, none there
	$(BIN)/python tests/benchmarks/window.py

bench-warm: install ## from an alert's POST to the first observe, beside Prefect's stock runner and a process worker
	$(BIN)/python tests/benchmarks/warm_start.py

schema: install ## write runbooks/*.schema.json again, from the models
	$(BIN)/python -m flows.engine.schema
	$(BIN)/python -m flows.intake.schema

bench-inbox: install ## how long the receiver takes to answer, kept on disk, at rising rates
	$(BIN)/python tests/benchmarks/inbox.py

lock: ## write requirements.lock again, from the newest versions that pyproject.toml allows
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)/lock/bin/python -m pip install --quiet --editable . --group dev
	$(VENV)/lock/bin/python -m pip freeze --exclude-editable > requirements.lock
	rm -rf $(VENV)/lock

clean: ## end the lab and remove what was installed here
	-test -x $(BIN)/relight && $(BIN)/relight lab down
	rm -rf $(VENV) deployments/lab/app/node_modules
