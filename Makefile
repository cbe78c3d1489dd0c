# The whole interface to this repository. See README.md.
.PHONY: setup demo test bench
setup: ; @scripts/setup
demo: setup ; @scripts/demo
test: setup ; @scripts/test
bench: setup ; @scripts/bench
