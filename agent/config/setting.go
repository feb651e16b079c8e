package config

import (
	"cmp"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	logsapi "k8s.io/component-base/logs/api/v1"
)

// setting is a row of the table of settings: something that an operator can set
// by a flag, in a file, or both.
type setting struct {
	flag  string // without dashes; empty if only a file sets it
	path  string // in the two documents, ours after its kind; empty if only a flag sets it
	to    any    // points to the value
	unset any    // the value if nobody sets one; nil if that is the zero value
	must  rule   // nil allows every value
	help  string

	idle       string // why the value means nothing here; empty if it means something
	deprecated string // what the value of an older version's setting means now; the flag is hidden

	besideFile bool // the flag counts even if a file holds kube-proxy's settings
	kernel     bool // the flag counts for commands that change the kernel and run no agent, too
	live       bool // a running agent takes up a changed value
}

// covers reports whether a field is the setting's or below it.
func (s setting) covers(path string) bool {
	return s.path != "" && (path == s.path || strings.HasPrefix(path, s.path+"."))
}

// field returns the value, which may be a pointer to the one that counts.
func (s setting) field() reflect.Value { return reflect.ValueOf(s.to).Elem() }

// fill sets a value that nobody set to its default.
func (s setting) fill() {
	v := s.field()
	if s.unset == nil || !v.IsZero() {
		return
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if v.Type() == reflect.TypeFor[metav1.Duration]() {
		v = v.Field(0)
	}
	v.Set(reflect.ValueOf(s.unset).Convert(v.Type()))
}

// values returns what must obey the setting's rule: the elements of a list, or
// the one value.
func (s setting) values() []any {
	v := reflect.Indirect(s.field())
	switch {
	case v.Kind() == reflect.Slice:
		var all []any
		for i := range v.Len() {
			all = append(all, v.Index(i).Interface())
		}
		return all
	case v.Type() == reflect.TypeFor[metav1.Duration]():
		v = v.Field(0)
	}
	return []any{v.Interface()}
}

// addFlag adds the setting's flag to fs. Its default is what the setting holds.
func (s setting) addFlag(fs *pflag.FlagSet) {
	help := s.help
	if s.idle != "" {
		help = "no meaning here: " + s.idle
	}
	help = cmp.Or(help, s.deprecated)
	switch to := s.to.(type) {
	case *string:
		fs.StringVar(to, s.flag, *to, help)
	case *[]string:
		fs.StringSliceVar(to, s.flag, *to, help)
	case *bool:
		fs.BoolVar(to, s.flag, *to, help)
	case **bool:
		if *to != nil {
			fs.BoolVar(*to, s.flag, **to, help)
		} else {
			fs.VarPF(optionalBool{to}, s.flag, "", help).NoOptDefVal = "true"
		}
	case *int:
		fs.IntVar(to, s.flag, *to, help)
	case **int32:
		fs.Int32Var(*to, s.flag, **to, help)
	case *int32:
		fs.Int32Var(to, s.flag, *to, help)
	case *float32:
		fs.Float32Var(to, s.flag, *to, help)
	case *time.Duration:
		fs.DurationVar(to, s.flag, *to, help)
	case **metav1.Duration:
		fs.DurationVar(&(*to).Duration, s.flag, (*to).Duration, help)
	case *map[string]bool:
		fs.Var(gatesFlag{to}, s.flag, help)
	case *logsapi.VerbosityLevel:
		fs.VarP(logsapi.VerbosityLevelPflag(to), s.flag, s.flag, help)
	case *logsapi.VModuleConfiguration:
		fs.Var(logsapi.VModuleConfigurationPflag(to), s.flag, help)
	case pflag.Value:
		fs.Var(to, s.flag, help)
	default:
		panic("no flag is made of a " + reflect.TypeOf(s.to).String()) // every test that adds flags sees it
	}
	if s.deprecated != "" {
		_ = fs.MarkHidden(s.flag) // this cannot fail: the flag is there
	}
}

// optionalBool is a flag that may be unset.
type optionalBool struct{ to **bool }

// Set implements pflag.Value.
func (o optionalBool) Set(s string) error {
	b, err := strconv.ParseBool(s)
	if err == nil {
		*o.to = &b
	}
	return err
}

// Type implements pflag.Value.
func (o optionalBool) Type() string { return "bool" }

func (o optionalBool) String() string {
	if o.to == nil || *o.to == nil {
		return ""
	}
	return strconv.FormatBool(**o.to)
}
