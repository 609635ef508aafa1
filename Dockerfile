# The one image of Restante: its four programs, no shell, no root.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=1.0.0 -t restante/restante:1.0.0 .
#
# BASE is what the programs stand on: certificates, time zones, and a user 65532. It is named by its digest, so that the same source makes
# the same image; another base, or the digest of a mirror, is given by --build-arg.
ARG GO_IMAGE=golang:1.26-bookworm
ARG BASE=gcr.io/distroless/static-debian12:nonroot@sha256:d093aa3e30dbadd3efe1310db061a14da60299baff8450a17fe0ccc514a16639

FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH VERSION=devel
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags "-s -w -X github.com/restante/restante/internal/app.version=$VERSION" -o /out/ ./cmd/...

FROM ${BASE}
ARG VERSION=devel
LABEL org.opencontainers.image.title="Restante" \
      org.opencontainers.image.description="Offline messages for MQTT" \
      org.opencontainers.image.source="https://github.com/restante/restante" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /out/ /app/
# By number: a cluster cannot see that a name is not root's.
USER 65532:65532
ENTRYPOINT ["/app/restante"]
