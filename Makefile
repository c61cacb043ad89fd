# The lines the README shows, and the two that build the documentation.
.PHONY: demo test docs readme results

demo:
	pip install -e . && bcd_demo

test:
	pip install -e '.[dev]' && nbdev-test && pytest -q

docs:
	python scripts/build_docs.py

readme:
	python scripts/build_readme.py

results:
	python scripts/make_results.py
