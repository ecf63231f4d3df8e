// Runs a converted model with the fused kernels: java Run MODEL.onnx LIBRARY.so TOKEN...
// Prints the token that the model holds likeliest behind each of those given.
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;

import java.util.Arrays;
import java.util.Map;

public class Run {
    public static void main(String[] arguments) throws OrtException {
        long[] tokens = Arrays.stream(arguments).skip(2).mapToLong(Long::parseLong).toArray();
        OrtEnvironment environment = OrtEnvironment.getEnvironment();
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.registerCustomOpLibrary(arguments[1]); // without this line the function bodies run
            try (OrtSession session = environment.createSession(arguments[0], options);
                    OnnxTensor input = OnnxTensor.createTensor(environment, new long[][] {tokens});
                    OrtSession.Result results = session.run(Map.of("input_ids", input))) {
                float[][][] logits = (float[][][]) results.get("logits").orElseThrow().getValue();
                for (float[] row : logits[0]) {
                    int best = 0;
                    for (int i = 1; i < row.length; i++) {
                        if (row[i] > row[best]) best = i;
                    }
                    System.out.println(best);
                }
            }
        }
    }
}
