package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/renderer"
	htmlrenderer "github.com/yuin/goldmark/renderer/html"
	"github.com/yuin/goldmark/util"
)

//go:embed page.html
var frame string

// writeHTML writes a page, given as Markdown, as one file of HTML that needs no
// other: pictures are in it. Their paths are seen from dir.
func writeHTML(w io.Writer, markdown []byte, dir string) error {
	md := goldmark.New(
		goldmark.WithExtensions(extension.Table),
		goldmark.WithParserOptions(parser.WithAutoHeadingID()),
		goldmark.WithRendererOptions(
			htmlrenderer.WithUnsafe(), // what is measured is escaped; <details> is ours
			renderer.WithNodeRenderers(util.Prioritized(inline{dir}, 1)),
		),
	)
	var body bytes.Buffer
	if err := md.Convert(markdown, &body); err != nil {
		return fmt.Errorf("writing the report as HTML: %w", err)
	}
	t, err := template.New("page.html").Parse(frame)
	if err != nil {
		return fmt.Errorf("reading the form of the HTML report: %w", err)
	}
	if err := t.Execute(w, template.HTML(body.String())); err != nil { //nolint:gosec // it is this package's page
		return fmt.Errorf("writing the report as HTML: %w", err)
	}
	return nil
}

// inline renders pictures as what their files hold.
type inline struct{ dir string }

// RegisterFuncs tells goldmark what inline renders.
func (i inline) RegisterFuncs(r renderer.NodeRendererFuncRegisterer) {
	r.Register(ast.KindImage, i.image)
}

func (i inline) image(w util.BufWriter, source []byte, node ast.Node, entering bool) (ast.WalkStatus, error) {
	if !entering {
		return ast.WalkContinue, nil
	}
	file := string(node.(*ast.Image).Destination)
	svg, err := os.ReadFile(filepath.Join(i.dir, filepath.FromSlash(file)))
	if err != nil {
		return ast.WalkStop, fmt.Errorf("putting a picture into the HTML report: %w", err)
	}
	at := strings.Index(string(svg), "<svg")
	if at < 0 {
		return ast.WalkStop, fmt.Errorf("putting a picture into the HTML report: %s is no SVG", file)
	}
	_, err = fmt.Fprintf(w, "<span class=\"picture\" role=\"img\" aria-label=\"%s\">%s</span>", template.HTMLEscapeString(words(node, source)), svg[at:])
	return ast.WalkSkipChildren, err
}

// words returns the text below a node.
func words(node ast.Node, source []byte) string {
	var b strings.Builder
	for n := node.FirstChild(); n != nil; n = n.NextSibling() {
		if t, ok := n.(*ast.Text); ok {
			b.Write(t.Segment.Value(source))
		}
	}
	return b.String()
}
