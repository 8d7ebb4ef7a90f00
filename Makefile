# make demo: set everything up and run the main job.  make test: set everything up and check all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint format bench reproduce clean

setup: $(STAMP)

# torch goes first and by its version alone: without the pin, the newest build would come with
# gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/sgquant search --model gcn --dataset digits --n-trials 48

test: lint
	$(BIN)/pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks studies

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP)
	for file in benchmarks/*.py; do $(BIN)/python $$file --quick || exit 1; done

# The paper's tables and figures, in one database; it goes on where it was stopped.
ROOT ?= data
REPRODUCTION := storage/reproduction.db
STUDY := $(BIN)/python studies
ifdef QUICK
reproduce: $(STAMP)
	$(STUDY)/figure1.py --quick
	$(STUDY)/table3.py --quick --storage storage/quick.db --out storage/quick
	$(STUDY)/figure7.py --quick --storage storage/quick.db
	$(STUDY)/figure8.py --quick --storage storage/quick.db
else
reproduce: $(STAMP)
	$(STUDY)/figure1.py --root $(ROOT)
	$(STUDY)/table3.py --root $(ROOT) --storage $(REPRODUCTION) --out storage/reproduction
	$(STUDY)/figure7.py --root $(ROOT) --storage $(REPRODUCTION)
	$(STUDY)/figure8.py --root $(ROOT) --storage $(REPRODUCTION)
endif

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
