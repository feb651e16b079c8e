package conformance

func socketCases() []testCase { return nil }
