# Switchyard. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BACKEND ?= auto
KERNEL  ?= all
OUT     ?= bench-results
GO      := CGO_ENABLED=0 go
LINT    := go tool -modfile=tools/go.mod golangci-lint

# Debian packages, by what needs them. iptables brings the nft and the legacy variant.
PACKAGES_TEST := iptables nftables ipset iproute2 ethtool strace kmod
# The compiler is pinned: the generated objects are committed and must come out the same.
PACKAGES_GENERATE := clang-19 llvm-19 libbpf-dev linux-libc-dev
PACKAGES_LINT     := clang-format-19
# The virtual machines have this machine's tools.
PACKAGES_VM    := $(PACKAGES_TEST) ipset ipvsadm conntrack qemu-system-x86 busybox-static cpio xz-utils
PACKAGES_IMAGE := apt dpkg ca-certificates git
PACKAGES_BENCH := $(PACKAGES_TEST) etcd-server
PACKAGES_E2E   = $(PACKAGES_TEST) $(shell sed 's/\#.*//' lab/e2e/packages.txt)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install the Debian packages that the tests, the demo and the end-to-end lab need
	@deploy/packages $(sort $(PACKAGES_E2E) $(PACKAGES_GENERATE) $(PACKAGES_LINT))

# The bpf file system is where systemd mounts it; other machines lack it.
.PHONY: deps-test
deps-test:
	@deploy/packages $(PACKAGES_TEST)
	@mountpoint -q /sys/fs/bpf || [ "$$(id -u)" -ne 0 ] || mount -t bpf bpffs /sys/fs/bpf

.PHONY: build
build: ## build bin/switchyard
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/switchyard ./cmd/switchyard

.PHONY: generate
generate: ## regenerate the committed BPF objects and Go bindings
	@deploy/packages $(PACKAGES_GENERATE)
	go generate ./...

.PHONY: lint
lint: ## check style, imports and go.mod; change nothing
	go mod tidy -diff
	@deploy/packages $(PACKAGES_LINT)
	@clang-format-19 --dry-run -Werror bpf/*.[ch] || { echo "The C above is not in the style of bpf/.clang-format. To mend it: clang-format-19 -i bpf/*.[ch]" >&2; exit 1; }
	$(LINT) run ./...

# One after the other: the table has the machine to itself, and comes last.
.PHONY: test
test: deps-test ## run all tests; the last part prints the conformance table
	@$(MAKE) --no-print-directory test-unit; unit=$$?; \
	$(MAKE) --no-print-directory test-conformance; conformance=$$?; \
	exit $$((unit | conformance))

# Everything but conformance, with the race detector (which needs cgo). The
# linter vets; packages wait more than they work.
.PHONY: test-unit
test-unit: deps-test
	CGO_ENABLED=1 go test -race -vet=off -p 3 $$(go list ./... | grep -v /dataplane/conformance)

# The test binary runs by itself so that its table is printed whatever the result.
# The columns wait more than they work, so all go at once.
.PHONY: test-conformance
test-conformance: deps-test
	@mkdir -p bin
	$(GO) test -c -o bin/conformance.test ./dataplane/conformance
	cd dataplane/conformance && $(CURDIR)/bin/conformance.test -test.parallel=5 $(if $(filter-out auto,$(BACKEND)),-backend=$(BACKEND)) $(if $(RUN),-test.run '$(RUN)')

.PHONY: test-kernel
test-kernel: deps-test ## run just the tests that need root and this kernel (BACKEND=..., RUN=...)
	go test ./dataplane/... ./internal/...
	@$(MAKE) --no-print-directory test-conformance

.PHONY: test-vm
test-vm: ## run kernel tests on Debian's kernels, emulated (KERNEL=5.10|6.1|6.12|newest|all: all but 5.10, PKG=./dataplane/..., RUN=..., BACKEND=..., ARGS=..., LIMIT=20m)
	@deploy/packages $(PACKAGES_VM)
	@mkdir -p bin
	@$(GO) build -o bin/vm ./lab/vm
	@bin/vm -kernel=$(KERNEL) $(if $(LIMIT),-limit=$(LIMIT)) $(if $(filter-out auto,$(BACKEND)),-backend=$(BACKEND)) $(if $(RUN),-run='$(RUN)') $(if $(ARGS),-args='$(ARGS)') $(if $(PKG),-v $(PKG))

.PHONY: e2e
e2e: ## run the DaemonSet under a real Kubernetes control plane and kubelets (BACKEND=...)
	@deploy/packages $(PACKAGES_E2E)
	$(GO) run ./lab/e2e all --backend $(BACKEND)

.PHONY: demo
demo: deps-test ## see it work: two nodes with pods on this machine, no cluster needed (BACKEND=...)
	@echo "Building (the first time takes a minute or two)"
	@mkdir -p bin
	@$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/ ./cmd/switchyard ./lab/demo
	@bin/demo --backend $(BACKEND)

# IPVS needs a kernel that has it.
.PHONY: demo-vm
demo-vm: build ## the demo with IPVS, in a virtual machine (KERNEL=5.10|6.1|6.12|newest|all)
	@deploy/packages $(PACKAGES_VM)
	$(GO) build -trimpath -o bin/ ./lab/demo ./lab/vm
	@bin/vm -kernel=$(KERNEL) -with bin/switchyard -with bin/demo -exec 'demo --agent /usr/bin/switchyard --backend ipvs'

.PHONY: bench
bench: build ## measure the backends beside kube-proxy: 30 minutes, or 4 with QUICK=1 (OUT=bench-results); the first run builds kube-proxy
	@deploy/packages $(PACKAGES_BENCH)
	@bench/kubernetes .cache/e2e/bin
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/switchyard-bench ./cmd/switchyard-bench
	@bin/switchyard bench $(if $(QUICK),--quick) --out $(OUT)

# To publish a run, copy its result.json to docs/benchmarks first.
.PHONY: bench-docs
bench-docs: ## write docs/benchmarks.md, its HTML and plots, and the README's figures, from docs/benchmarks/result.json
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/switchyard-bench ./cmd/switchyard-bench
	@rm -f docs/benchmarks/*.png docs/benchmarks/*.svg
	bin/switchyard-bench report docs/benchmarks/result.json --file docs/benchmarks.md --plots docs/benchmarks --readme README.md

# ARGS are flags, as --agents 50,100.
.PHONY: bench-cluster
bench-cluster: ## measure what many agents and hollow kube-proxies cost one API server: 20 minutes (ARGS="--agents 50,100 --for 10s", OUT=bench-results)
	@deploy/packages $(PACKAGES_BENCH)
	@bench/kubernetes .cache/e2e/bin kube-apiserver kubemark
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/switchyard-bench ./cmd/switchyard-bench
	@bin/switchyard-bench cluster --out $(OUT) $(ARGS)

# As root: it makes a lab, and strace counts system calls.
.PHONY: costs
costs: deps-test ## count instructions, rules, messages, allocations and bytes; fail where one grew by 10 % since the baseline (WRITE=1: write the baseline again)
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/switchyard-bench ./cmd/switchyard-bench
	@bin/switchyard-bench costs $(if $(WRITE),--write bench/costs/baseline.json)

# IPVS needs a kernel that has it. What is emulated tells nothing of absolute times.
.PHONY: bench-vm
bench-vm: build ## measure IPVS beside kube-proxy's mode of that name, emulated: ratios only (KERNEL=6.12, ARGS="--parts traffic")
	@deploy/packages $(PACKAGES_BENCH) $(PACKAGES_VM)
	@bench/kubernetes .cache/e2e/bin
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/ ./cmd/switchyard-bench ./lab/vm
	@bin/vm -kernel=$(if $(filter all,$(KERNEL)),6.12,$(KERNEL)) -memory 5G -limit 90m \
	  $(addprefix -with ,bin/switchyard bin/switchyard-bench .cache/e2e/bin/kube-apiserver .cache/e2e/bin/kube-proxy /usr/bin/etcd) \
	  -exec 'modprobe -a ip_vs ip_vs_rr; switchyard-bench --quick --proxies straight,switchyard-ipvs,kube-proxy-ipvs --kubernetes /usr/bin $(ARGS) && cat bench-results/report.md'

.PHONY: bench-go
bench-go: ## run the Go benchmarks of the watcher and the backends
	go test -run '^$$' -bench . ./dataplane ./watcher/... ./dataplane/iptables ./dataplane/ebpf

# Both architectures, from here. The packages come through apt and are kept.
.PHONY: image
image: ## build the OCI image for amd64 and arm64 into bin/image, without a container engine
	@deploy/packages $(PACKAGES_IMAGE)
	go run ./deploy/image -version $(VERSION)

.PHONY: image-pin
image-pin: ## pin the newest versions of the Debian packages that the image takes files from
	go run ./deploy/image -pin

.PHONY: image-reproducible
image-reproducible: ## build the image of HEAD twice, from two clones, and compare
	deploy/image/reproducible

.PHONY: clean
clean: ## remove what the build made; the Go caches stay
	rm -rf bin .cache
