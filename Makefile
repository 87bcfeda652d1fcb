# Every target creates what it needs: on a fresh clone `make test` alone is enough.
# To choose the interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m
TRAIN := $(VENV)/bin/python train.py
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo lessons tour docs test lint format parity bench bundled bars clean

help: ## print the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r target text; do printf 'make %-8s %s\n' "$$target" "$$text"; done

install: $(INSTALLED) ## create .venv with the package and its test tools

# What the demo teaches, step by step, with the commands that real data take. The base knows phantoms, but no class word.
DEMO := runs/demo
BASE := ldm_us/weights/us128_base.safetensors

demo: $(INSTALLED) ## phantoms, two trainings, samples and runs/demo/report.html; the same command again goes on
	@test -d $(DEMO)/phantoms || $(RUN) ldm_us.data phantom --n 300 --seed 3 --workers 2 --out $(DEMO)/phantoms
	$(TRAIN) unet --weights $(BASE) --data $(DEMO)/phantoms --train-text --text-warmup 100 \
		--batch 16 --lr 1e-3 --warmup 10 --ema 0.97 --steps 450 --sample-every 450 --validate-every 150 --out $(DEMO)/unet
	$(TRAIN) controlnet --weights $(DEMO)/unet/model.safetensors --data $(DEMO)/phantoms --batch 8 \
		--caption-dropout 0.1 --lr 2e-3 --warmup 10 --ema 0.97 --steps 250 --sample-every 250 --validate-every 50 --out $(DEMO)/controlnet
	$(VENV)/bin/python sample.py --weights $(DEMO)/unet/model.safetensors --out $(DEMO)/samples --overwrite
	$(RUN) ldm_us.report $(DEMO)/unet $(DEMO)/controlnet --steps 25 --judge ldm_us/weights/judge.safetensors \
		--out $(DEMO)/report.html --overwrite

lessons: $(INSTALLED) ## run the ten lessons and write them as pages, runs/lessons/index.html (2 minutes)
	$(RUN) lessons.book --out runs/lessons --overwrite

tour: $(INSTALLED) ## write the links of docs/tour.md and its figure again, after lines have moved
	$(RUN) bench.tour

docs: $(INSTALLED) ## the reference of every module, from its docstrings: runs/docs/index.html (half a minute)
	$(RUN) bench.reference --out runs/docs --overwrite

test: $(INSTALLED) ## run the tests; ARGS="-k ddim" passes options to pytest
	OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(INSTALLED) ## check with ruff (rules and format) and mypy; changes nothing
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: $(INSTALLED) ## let ruff fix what it can and format the code
	$(RUN) ruff check --fix --exit-zero .
	$(RUN) ruff format .

parity: $(INSTALLED) ## compare with diffusers and transformers on the same weights; ARGS="--preset sd15 --steps 2"
	$(RUN) pip install -q -e '.[bench]'
	$(VENV)/bin/python bench/parity.py $(ARGS)

bench: $(INSTALLED) ## time ours against diffusers on the same weights, hours on a CPU; ARGS=--quick takes ten minutes
	$(RUN) pip install -q -e '.[bench]'
	$(RUN) bench.speed $(ARGS)

# How the models of ldm_us/weights/ were made: hours on two cores.
BUNDLED := runs/bundled

bundled: $(INSTALLED) ## train the models of ldm_us/weights again, into runs/bundled (2 hours on two cores)
	@test -d $(BUNDLED)/phantoms || $(RUN) ldm_us.data phantom --n 6000 --seed 1 --workers 2 --out $(BUNDLED)/phantoms
	$(TRAIN) vae --preset us128 --data $(BUNDLED)/phantoms --held-out 0.02 --batch 8 --lr 1e-3 --warmup 50 \
		--ema 0.995 --steps 500 --save-every 100 --out $(BUNDLED)/vae
	$(TRAIN) unet --weights $(BUNDLED)/vae/model.safetensors --data $(BUNDLED)/phantoms --held-out 0.02 --batch 16 \
		--lr 1e-3 --ema 0.998 --caption-dropout 1 --steps 1400 --save-every 200 --out $(BUNDLED)/base
	$(TRAIN) unet --weights $(BUNDLED)/base/model.safetensors --data $(BUNDLED)/phantoms --held-out 0.02 --batch 16 \
		--lr 1e-3 --ema 0.995 --train-text --text-warmup 100 --steps 1800 --seed 1 --out $(BUNDLED)/unet
	$(TRAIN) controlnet --weights $(BUNDLED)/unet/model.safetensors --data $(BUNDLED)/phantoms --held-out 0.02 \
		--batch 8 --lr 2e-3 --warmup 50 --ema 0.99 --caption-dropout 0.3 --steps 2500 --seed 2 --out $(BUNDLED)/controlnet
	$(RUN) weights_convert import $(BUNDLED)/base/model.safetensors --dtype fp16 --out $(BUNDLED)/us128_base.safetensors
	$(RUN) weights_convert import $(BUNDLED)/controlnet/model.safetensors --dtype fp16 --out $(BUNDLED)/us128.safetensors
	$(RUN) ldm_us.evaluation train-judge --data $(BUNDLED)/phantoms --held-out 0.1 --steps 3000 \
		--out $(BUNDLED)/judge.safetensors

# Every result is made once, and again when the weights are newer: with --overwrite, for make has decided.
WEIGHTS := ldm_us/weights
MODEL := $(WEIGHTS)/us128.safetensors
JUDGE := $(WEIGHTS)/judge.safetensors
BARS := $(BUNDLED)/bars
RESULTS := $(addprefix $(BARS)/,reconstruction.json classes.json masks.json realism_reconstructed/realism.json \
	realism_samples/realism.json memorisation/memorisation.json)
MEASURED := --weights $(MODEL) --data $(BUNDLED)/unseen --unseen --out $(BARS) --overwrite
REALISM := $(RUN) ldm_us.evaluation realism --real $(BUNDLED)/unseen --size 128 --overwrite

bars: $(RESULTS) ## measure the bundled model on phantoms that it has never seen: each bar, passed or missed
	$(VENV)/bin/python bench/bars.py $(BARS)
	$(VENV)/bin/python bench/bundled.py

$(BUNDLED)/unseen: | $(INSTALLED)
	$(RUN) ldm_us.data phantom --n 300 --seed 2 --workers 2 --out $@

$(BUNDLED)/phantoms: | $(INSTALLED)
	$(RUN) ldm_us.data phantom --n 6000 --seed 1 --workers 2 --out $@

$(BUNDLED)/samples/manifest.jsonl: $(MODEL) | $(INSTALLED)
	$(VENV)/bin/python sample.py --n 100 --sampler ddim --steps 25 --seed 500 --layout busi --out $(@D) $$(test ! -f $@ || echo --overwrite)

$(BARS)/reconstruction.json: $(MODEL) | $(BUNDLED)/unseen
	$(RUN) ldm_us.evaluation reconstruction $(MEASURED) --images $(BUNDLED)/reconstructed

$(BARS)/classes.json: $(MODEL) $(JUDGE) | $(INSTALLED)
	$(RUN) ldm_us.evaluation classes --weights $(MODEL) --judge $(JUDGE) --n 40 --guidance 3 --batch 16 --seed 100 \
		--out $(BARS) --overwrite

$(BARS)/masks.json: $(MODEL) $(JUDGE) | $(BUNDLED)/unseen
	$(RUN) ldm_us.evaluation masks $(MEASURED) --judge $(JUDGE) --n 64 --steps 25 --guidance 1 --control-scale 2 --batch 16

$(BARS)/realism_reconstructed/realism.json: $(BARS)/reconstruction.json
	$(REALISM) --generated $(BUNDLED)/reconstructed --out $(@D)

$(BARS)/realism_samples/realism.json: $(BUNDLED)/samples/manifest.jsonl | $(BUNDLED)/unseen
	$(REALISM) --generated $(BUNDLED)/samples --out $(@D)

# Ignored where it is refused, for the phantoms are not the very images that the model was trained on: not measured.
$(BARS)/memorisation/memorisation.json: $(BUNDLED)/samples/manifest.jsonl | $(BUNDLED)/phantoms
	-$(RUN) ldm_us.evaluation memorisation --weights $(MODEL) --data $(BUNDLED)/phantoms --generated $(BUNDLED)/samples \
		--out $(@D) --overwrite

clean: ## delete .venv, build outputs and caches; runs and weights stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an installation that was cut short is done again.
$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.10. Choose another: make PYTHON=python3.12 install" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install -e '.[test]'
	@touch $@
