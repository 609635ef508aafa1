package app

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const chartSchemaFile = "../../deploy/helm/restante/values.schema.json"

// chartOwn are the keys that the chart sets, or that make no sense on Kubernetes.
var chartOwn = []string{
	"shutdown", "admin.listen", "ingest.spool.path", "sources.*.ordinal", "sources.*:embedded", "sinks.*:sqlite", "sinks.*:memory",
}

// chartNeeds are the keys that every configuration of the separate processes has.
var chartNeeds = map[string][]string{"": {"kafka", "sources", "sinks", "rules"}, "kafka": {"brokers"}}

type object = map[string]any

// envText is a text with something of the environment in it, which may stand for a value of any type.
var envText = object{"type": "string", "pattern": `\$\{[A-Za-z_][A-Za-z0-9_]*\}`}

// schemaOf is the JSON schema of a value with its defaults at the path.
func schemaOf(v reflect.Value, f field, path string) object {
	t := v.Type()
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
		v = reflect.New(t).Elem()
	}
	or := func(s object) object { return object{"anyOf": []any{s, object{"$ref": "#/$defs/env"}}} }
	switch {
	case t == reflect.TypeFor[Secret]():
		return object{"$ref": "#/$defs/secret"}
	case t == durationType:
		return object{"$ref": "#/$defs/duration"}
	case t == sizeType:
		return object{"$ref": "#/$defs/size"}
	case t == addressType, t == listType:
		return object{"$ref": "#/$defs/texts1"}
	case len(f.One) > 0:
		return or(object{"enum": f.One})
	case t.Kind() == reflect.String:
		return object{"type": "string"}
	case t.Kind() == reflect.Bool:
		return or(object{"type": "boolean"})
	case t.Kind() == reflect.Int:
		s := object{"type": "integer"}
		if f.Min != "" {
			s["minimum"], _ = strconv.Atoi(f.Min)
		}
		if f.Max != "" {
			s["maximum"], _ = strconv.Atoi(f.Max)
		}
		return or(s)
	case t.Kind() == reflect.Slice:
		return object{"type": "array", "minItems": 1, "items": schemaOf(reflect.ValueOf(defaultRule()), field{}, path+"[]")}
	case t.Kind() == reflect.Map:
		return object{
			"type": "object", "minProperties": 1, "propertyNames": object{"pattern": strings.Replace(ownName.String(), "62", "61", 1)},
			"additionalProperties": schemaOfVariant(path),
		}
	}
	return schemaOfStruct(v, path, object{}, nil)
}

func schemaOfStruct(v reflect.Value, path string, props object, need []string) object {
	for _, f := range fieldsOf(v.Type()) {
		at := join(path, f.Key)
		if slices.Contains(chartOwn, at) {
			continue
		}
		props[f.Key] = schemaOf(v.Field(f.Index), f, at)
		if f.Doc != "" {
			props[f.Key].(object)["description"] = f.Doc
		}
		if f.Need && v.Field(f.Index).IsZero() {
			need = append(need, f.Key)
		}
	}
	s := object{"type": "object", "additionalProperties": false, "properties": props}
	if need = append(need, chartNeeds[path]...); len(need) > 0 {
		s["required"] = need
	}
	return s
}

// schemaOfVariant has one schema for each type that the chart can run, chosen by "type".
func schemaOfVariant(kind string) object {
	var types []string
	var cases []any
	for _, one := range variants()[kind] {
		v := reflect.ValueOf(one)
		typ := v.FieldByName("Type").String()
		if slices.Contains(chartOwn, kind+".*:"+typ) {
			continue
		}
		part, _ := partOf(v)
		types = append(types, typ)
		cases = append(cases, object{
			"if":   object{"required": []string{"type"}, "properties": object{"type": object{"const": typ}}},
			"then": schemaOfStruct(part, kind+".*", object{"type": object{}}, nil),
		})
	}
	return object{"type": "object", "required": []string{"type"}, "properties": object{"type": object{"enum": types}}, "allOf": cases}
}

// TestTheChartsSchemaOfTheConfigurationIsThatOfTheProgram holds config in the chart's schema to the struct tags.
func TestTheChartsSchemaOfTheConfigurationIsThatOfTheProgram(t *testing.T) {
	t.Parallel()
	have, err := os.ReadFile(chartSchemaFile)
	if err != nil {
		t.Fatal(err)
	}
	var doc object
	if err := json.Unmarshal(have, &doc); err != nil {
		t.Fatal(err)
	}
	defs := doc["$defs"].(object)
	maps.Copy(defs, object{
		"config":   schemaOf(reflect.ValueOf(Default()), field{}, ""),
		"env":      envText,
		"secret":   object{"type": "string", "pattern": `^(\$\{[A-Za-z_][A-Za-z0-9_]*\})?$`, "$comment": "A secret is never written into values: a file of a Secret, or the environment."},
		"duration": object{"anyOf": []any{object{"type": "string", "pattern": `^(0|([0-9]+d)?([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))*)$`, "minLength": 1}, object{"const": 0}, object{"$ref": "#/$defs/env"}}},
		"size":     object{"anyOf": []any{object{"type": "integer", "minimum": 0}, object{"type": "string", "pattern": `^[0-9]+ *(B|KiB|MiB|GiB)?$`}, object{"$ref": "#/$defs/env"}}},
		"texts1":   object{"anyOf": []any{object{"type": "string", "minLength": 1}, object{"type": "array", "items": object{"type": "string", "minLength": 1}}}},
	})
	var want bytes.Buffer
	enc := json.NewEncoder(&want)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(chartSchemaFile, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want.String(), string(have)); d != "" {
		t.Errorf("%s is not what the struct tags say; run with -update (-file +tags):\n%s", chartSchemaFile, d)
	}
}
