//go:build tools

// Package tools holds no code: go.mod pins, as tools, the peers that `make peers` builds from source.
//
// Renew with: go get -tool oras.land/oras/cmd/oras@VERSION github.com/google/go-containerregistry/cmd/crane@VERSION
package tools
