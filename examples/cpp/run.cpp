// Runs a converted model with the fused kernels: run MODEL.onnx LIBRARY.so TOKEN...
// Prints the token that the model holds likeliest behind each of those given.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

int main(int argc, char** argv) {
    if (argc < 4) {
        std::fprintf(stderr, "usage: run MODEL.onnx LIBRARY.so TOKEN...\n");
        return 2;
    }
    try {
        Ort::Env environment;
        Ort::SessionOptions options;
        options.RegisterCustomOpsLibrary(argv[2]);  // without this line the function bodies run
        Ort::Session session(environment, argv[1], options);

        std::vector<int64_t> tokens;
        for (int i = 3; i < argc; ++i) tokens.push_back(std::atoll(argv[i]));
        const int64_t shape[] = {1, static_cast<int64_t>(tokens.size())};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        auto input = Ort::Value::CreateTensor<int64_t>(memory, tokens.data(), tokens.size(), shape, 2);

        const char* inputs[] = {"input_ids"};
        const char* outputs[] = {"logits"};
        const auto results = session.Run(Ort::RunOptions{}, inputs, &input, 1, outputs, 1);

        const int64_t vocabulary = results[0].GetTensorTypeAndShapeInfo().GetShape().back();
        const float* row = results[0].GetTensorData<float>();
        for (size_t i = 0; i < tokens.size(); ++i, row += vocabulary)
            std::printf("%td\n", std::max_element(row, row + vocabulary) - row);
    } catch (const Ort::Exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
