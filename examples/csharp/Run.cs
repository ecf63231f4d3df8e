// Runs a converted model with the fused kernels: Run MODEL.onnx LIBRARY.so TOKEN...
// Prints the token that the model holds likeliest behind each of those given.
using System;
using System.Collections.Generic;
using System.Linq;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

public static class Run
{
    public static void Main(string[] arguments)
    {
        long[] tokens = arguments.Skip(2).Select(long.Parse).ToArray();
        using (var options = new SessionOptions())
        {
            options.RegisterCustomOpLibrary(arguments[1]); // without this line the function bodies run
            using (var session = new InferenceSession(arguments[0], options))
            {
                var input = new DenseTensor<long>(tokens, new[] { 1, tokens.Length });
                var feeds = new List<NamedOnnxValue> { NamedOnnxValue.CreateFromTensor("input_ids", input) };
                using (var results = session.Run(feeds))
                {
                    Tensor<float> logits = results.First(result => result.Name == "logits").AsTensor<float>();
                    int vocabulary = logits.Dimensions[2];
                    for (int i = 0; i < tokens.Length; i++)
                    {
                        var best = Enumerable.Range(0, vocabulary).OrderByDescending(j => logits[0, i, j]).First();
                        Console.WriteLine(best);
                    }
                }
            }
        }
    }
}
