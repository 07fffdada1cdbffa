# What a person types and what CI calls. Everything is set up on first use, in .venv and .node.
.DEFAULT_GOAL := help
PY := .venv/bin/python
export PYTHONUNBUFFERED := 1
CHAOS := tests/system/test_recovery.py tests/system/test_soak.py tests/system/test_bad_links.py \
	tests/singleuser/test_resume.py tests/singleuser/test_outages.py tests/singleuser/test_full_disk.py \
	tests/singleuser/test_run_without_database.py tests/contract/test_database_outage.py \
	tests/system/test_restart_in_upload.py

FUZZ := tests/web/test_openapi_fuzz.py tests/singleuser/test_hostile_fleet.py

.PHONY: help demo test chaos fuzz bench lint audit sbom format docs setup clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: setup ## Run the whole journey, then leave the Hub up.  EXIT=1: end after the table.  DATA=<folder>: image sites.  PORT=8000
	@$(PY) -m examples.demo --port $(or $(PORT),8000) $(if $(EXIT),--exit) $(if $(DATA),--data "$(DATA)")

test: setup ## Run every test this machine can run; what is left out is named.  REQUIRE_ALL=1: leave nothing out.  STATUS=<file>: pytest's exit status
	@$(PY) -m pytest $(if $(REQUIRE_ALL),--require-all) $(ARGS) $(if $(STATUS),|| { echo $$? >"$(STATUS)"; exit 1; })

chaos: setup ## Kill everything again and again, for hours; figures below test-output/reliability.  TRIES=25  MINUTES=120
	@RESUME_KILLS=$(or $(TRIES),25) $(PY) -m pytest --tries $(or $(TRIES),25) --soak-minutes $(or $(MINUTES),120) --cut-seconds 360 --database-seconds 60 $(or $(ARGS),$(CHAOS))

fuzz: setup ## Send broken requests to the API and to the gateway for a night.  CASES=100000  SEED=7
	@FUZZ_CASES=$(or $(CASES),100000) FUZZ_SEED=$(or $(SEED),7) $(PY) -m pytest $(FUZZ) $(ARGS)

bench: setup ## Measure, and print a table.  GROUPS="rounds big": these only.  ARGS=--without-peers: ours only
	@$(PY) -m tests.bench $(ARGS) $(GROUPS)

lint: setup ## ruff, mypy --strict: the checks of CI
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

audit: setup ## Look up the images' locked packages among the known vulnerabilities
	@$(PY) scripts/audit.py $(ARGS)

sbom: setup ## Write software bills of materials (CycloneDX) of the environment and the images' locks into test-output/sbom
	@mkdir -p test-output/sbom
	@.venv/bin/cyclonedx-py environment --validate --pyproject pyproject.toml -o test-output/sbom/environment.json $(PY)
	@for image in hub aggregator; do PYTHONWARNINGS=ignore .venv/bin/cyclonedx-py requirements --validate \
		--pyproject pyproject.toml -o test-output/sbom/$$image.json images/$$image/requirements.txt || exit 1; done

format: setup ## Let ruff rewrite what it can
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

docs: setup ## Write docs/api.md from the docstrings
	@$(PY) scripts/api_reference.py

setup: ## Make .venv and .node
	@scripts/setup.sh

clean: ## Remove what the other targets made
	rm -rf .venv .node .demo test-output .pytest_cache .mypy_cache .ruff_cache
