package conformance

func addressCases() []testCase { return nil }
