# What DuckDB's community repository runs (extension-ci-tools): the extension where it looks for it. Everything else is cargo xtask.
.PHONY: configure debug release test clean

configure:
	cargo fetch

debug release:
	cargo xtask duckdb
	mkdir -p build/$@/extension/mergeql
	cp "$${CARGO_TARGET_DIR:-target}/release/mergeql.duckdb_extension" build/$@/extension/mergeql/

test:
	cargo xtask test-duckdb

clean:
	rm -rf build
