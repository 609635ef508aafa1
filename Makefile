# Restante. `make help` lists the targets.

GO       ?= go
TOOL      = $(GO) tool -modfile=tools/go.mod
SERVERS   = $(GO) run ./internal/stack/servers
FUZZTIME ?= 1m
BENCH    ?= .
# The version that the soak runs beside this one: a release, or anything that git knows.
UPGRADE_FROM ?= $(shell git describe --tags --abbrev=0 2>/dev/null)
IMAGE    ?= restante/restante
VERSION  ?= devel
# Servers that are stopped under load tell little beside all the other tests, so these run before them.
OUTAGES   = RESTANTE_OUTAGES=1 $(GO) test -race -count=1 -p=1 -timeout $(if $(RESTANTE_SOAK),2h,12m)
STORES    = -run "StoreThatIsAway|SinkThatIsDown" ./internal/e2e/
CHAOS     = -run Chaos ./internal/e2e/
LEADERS   = -run "LeaderThatDies|OutlivesItsLeader|KafkaHangs" ./internal/e2e/ ./internal/stack/

.DEFAULT_GOAL := help
.PHONY: help build test race outages chaos servers vet lint fmt proto vuln fuzz bench soak chart chart-tools chart-docs image sbom check

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the commands into bin/.
	$(GO) build -trimpath -o bin/ ./cmd/...

test: ## Run every test once, with the race detector, in a random order; before them the simulations in full, and the stores' outages.
	$(GO) test ./internal/sim
	$(GO) test -run "WildcardReads|RandomHistories" ./pipeline
	RESTANTE_REQUIRE_SERVERS=1 $(SERVERS) sh -c '$(OUTAGES) $(STORES) && $(OUTAGES) $(CHAOS) && $(GO) test -race -shuffle=on -parallel=3 -timeout 20m ./...'

race: ## Hunt for races: run every test three times over, each time in another order.
	RESTANTE_REQUIRE_SERVERS=1 $(SERVERS) $(GO) test -race -shuffle=on -count=3 -timeout 60m ./...

outages: ## Stop stores, Kafka and its leaders under load for 10 s each; RESTANTE_SOAK=1 for long. Needs a quiet machine.
	RESTANTE_REQUIRE_SERVERS=1 $(SERVERS) sh -c '$(OUTAGES) -v -parallel=1 $(STORES) && $(OUTAGES) -v -parallel=1 $(LEADERS)'

chaos: ## Kill, freeze and cut off processes and servers for RESTANTE_CHAOS (30m) beside each store, by RESTANTE_CHAOS_SEED, and balance the books.
	RESTANTE_CHAOS=$${RESTANTE_CHAOS:-30m} RESTANTE_OUTAGES=1 RESTANTE_REQUIRE_SERVERS=1 $(SERVERS) $(GO) test -race -count=1 -v -timeout 4h $(CHAOS)

servers: ## Start Kafka, Cassandra and DynamoDB Local for work by hand; Ctrl-C stops them.
	@$(SERVERS)

vet: ## Run go vet.
	$(GO) vet ./...

lint: ## Run the linters of .golangci.yml.
	$(TOOL) golangci-lint run --allow-parallel-runners ./...

fmt: ## Format the code and order its imports.
	$(TOOL) golangci-lint fmt

proto: ## Generate the Go types of the ExHook messages anew; needs protoc.
	$(GO) build -o bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go
	protoc --plugin=bin/protoc-gen-go --go_out=. --go_opt=paths=source_relative mqtt/exhook/exhookpb/exhook.proto

vuln: ## Look for known vulnerabilities in what is called.
	@GO="$(GO)" .ci/vuln

fuzz: ## Run every fuzz target for FUZZTIME (1m) each.
	@set -e; targets=$$(grep -rho --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | wc -l); \
	test "$$targets" -gt 0 || { echo "fuzz: found no target" >&2; exit 1; }; \
	for file in $$(grep -rl --include='*_test.go' '^func Fuzz' . | sort); do \
	  for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$$file"); do \
	    echo "fuzz: $$target in $$(dirname "$$file") for $(FUZZTIME)"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")"; \
	  done; \
	done

bench: ## Run the benchmarks of the whole, on real servers; BENCH picks some by a pattern.
	RESTANTE_REQUIRE_SERVERS=1 $(SERVERS) $(GO) test -run '^$$' -bench '$(BENCH)' -benchtime 1x -benchmem -timeout 60m ./bench/...

soak: ## Run the long figures: the simulation, the worker's law, the stores, outages.
	RESTANTE_SOAK=1 RESTANTE_UPGRADE_FROM="$(UPGRADE_FROM)" RESTANTE_REQUIRE_SERVERS=1 $(SERVERS) $(GO) test -count=1 -v -timeout 6h ./internal/sim/... ./pipeline/... ./sinks/... ./internal/e2e/

chart-tools: ## Make what the chart's tests use, into bin/tools: Helm, its unit tests, kubeconform, kube-score, helm-docs, schemas.
	@GO="$(GO)" .ci/chart-tools

chart: chart-tools ## Test the Helm chart: lint, unit tests, schemas of Kubernetes, the programs' check of what is rendered, every key.
	RESTANTE_REQUIRE_HELM=1 $(GO) test -count=1 ./internal/charttest

chart-docs: chart-tools ## Write the chart's README.md and its schema of the configuration anew.
	$(GO) test ./internal/app -run TestTheChartsSchema -update
	bin/tools/helm-docs --chart-search-root deploy/helm --sort-values-order file

image: ## Build the image for amd64 and arm64 with its SBOM, as IMAGE (restante/restante) with the tag VERSION; OUTPUT=--push puts it into the registry.
	docker buildx build --platform linux/amd64,linux/arm64 --sbom=true --provenance=true --build-arg VERSION=$(VERSION) -t $(IMAGE):$(VERSION) $(OUTPUT) .

sbom: build ## Write the modules of each program into bin/*.cdx.json, as CycloneDX.
	@set -e; for program in bin/ingest bin/writer bin/replayer bin/restante; do \
	  $(GO) run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0 bin -json -output $$program.cdx.json $$program; done

check: ## Run what continuous integration runs.
	@.ci/run
