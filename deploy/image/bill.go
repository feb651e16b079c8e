package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
)

// The part of SPDX 2.3 that says what the image is made of.
type document struct {
	SPDXVersion       string         `json:"spdxVersion"`
	DataLicense       string         `json:"dataLicense"`
	SPDXID            string         `json:"SPDXID"`
	Name              string         `json:"name"`
	DocumentNamespace string         `json:"documentNamespace"`
	CreationInfo      creation       `json:"creationInfo"`
	Packages          []component    `json:"packages"`
	Relationships     []relationship `json:"relationships"`
}

type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type component struct {
	SPDXID           string     `json:"SPDXID"`
	Name             string     `json:"name"`
	VersionInfo      string     `json:"versionInfo"`
	DownloadLocation string     `json:"downloadLocation"`
	LicenseConcluded string     `json:"licenseConcluded"`
	LicenseDeclared  string     `json:"licenseDeclared"`
	CopyrightText    string     `json:"copyrightText"`
	FilesAnalyzed    bool       `json:"filesAnalyzed"`
	Checksums        []checksum `json:"checksums,omitempty"`
	ExternalRefs     []external `json:"externalRefs"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type external struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

const rootID = "SPDXRef-switchyard"

// bill lists the Debian packages that something in the image is from, and the
// Go modules of the binary, as the binary itself tells them.
func bill(p part, binary []byte, version string) ([]byte, error) {
	info, err := buildinfo.Read(bytes.NewReader(binary))
	if err != nil {
		return nil, fmt.Errorf("reading the binary's modules: %w", err)
	}
	sum := sha256.Sum256(binary)
	d := document{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT", Name: "switchyard-" + p.arch,
		DocumentNamespace: "https://switchyard.io/spdx/" + p.revision + "/" + p.arch,
		CreationInfo:      creation{Created: p.at, Creators: []string{"Tool: switchyard-image"}},
		Relationships:     []relationship{{"SPDXRef-DOCUMENT", "DESCRIBES", rootID}},
	}
	root := makeComponent("switchyard", version, "Apache-2.0", "pkg:golang/"+info.Main.Path+"@"+version)
	root.SPDXID, root.Checksums = rootID, []checksum{{"SHA256", hex.EncodeToString(sum[:])}}
	d.Packages = append(d.Packages, root)
	goVersion := strings.TrimPrefix(info.GoVersion, "go")
	d.contains(makeComponent("go", goVersion, "BSD-3-Clause", "pkg:golang/stdlib@"+goVersion))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		d.contains(module(m))
	}
	from := p.tools.sources()
	for _, deb := range p.packages {
		if !slices.Contains(from, deb.name) {
			continue
		}
		c := makeComponent(deb.name, deb.version, "NOASSERTION",
			fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=debian-12", deb.name, url.QueryEscape(deb.version), deb.arch))
		c.Checksums = []checksum{{"SHA256", deb.sha256}}
		d.contains(c)
	}
	return json.MarshalIndent(d, "", "  ")
}

func module(m *debug.Module) component {
	return makeComponent(m.Path, m.Version, "NOASSERTION", "pkg:golang/"+m.Path+"@"+m.Version)
}

func makeComponent(name, version, licence, purl string) component {
	// An identifier has letters, digits, dots and dashes only.
	id := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, name)
	return component{
		SPDXID: "SPDXRef-" + id, Name: name, VersionInfo: version, DownloadLocation: "NOASSERTION",
		LicenseConcluded: "NOASSERTION", LicenseDeclared: licence, CopyrightText: "NOASSERTION",
		ExternalRefs: []external{{"PACKAGE-MANAGER", "purl", purl}},
	}
}

func (d *document) contains(c component) {
	d.Packages = append(d.Packages, c)
	d.Relationships = append(d.Relationships, relationship{rootID, "CONTAINS", c.SPDXID})
}
