// The library in ONNX Runtime under load, without Python, so that the sanitizers, valgrind and emulators see
// nothing else.
//
//   under_load RUNTIME LIBRARY MODEL concurrent THREADS RUNS POOL   THREADS threads make RUNS runs each of one
//       session, all with inputs of their own, over a pool of POOL threads of ONNX Runtime; every answer is
//       compared bit for bit with that of a session of one thread, asked before
//   under_load RUNTIME LIBRARY MODEL sessions COUNT   makes, runs and destroys sessions, one after another
//
// The model's inputs and outputs are matrices of kChannels columns whose names end in their type.
#include <atomic>
#include <cstring>
#include <fstream>
#include <random>
#include <thread>

#include <unistd.h>

#include "sessions.h"
#define DYNORM_TARGET reference
#include "simd_portable.h"

using sessions::Api;
using sessions::Session;

namespace {

constexpr size_t kChannels = 48;
// Most runs stay on their thread; these are long enough to be shared out.
constexpr size_t kLongRows = 700;
constexpr size_t kEvery = 100;

struct ElementType {
    const char* name;
    int code;  // ONNXTensorElementDataType
    size_t size;
};
constexpr ElementType kElementTypes[] = {
    {"float32", 1, 4},
    {"float16", 10, 2},
    {"bfloat16", 16, 2},
    {"double", 11, 8},
};

const ElementType& type_in(const std::string& name) {
    const std::string ending = name.substr(name.rfind('_') + 1);
    for (const ElementType& type : kElementTypes) {
        if (ending == type.name) return type;
    }
    std::fprintf(stderr, "%s names no type\n", name.c_str());
    std::exit(1);
}

using Bytes = std::unique_ptr<char[]>;  // exactly as long as the tensor

// The feeds of one run, and its outputs in one thread.
struct Case {
    size_t rows;
    std::vector<Bytes> feeds;
    std::vector<Bytes> expected;
};

size_t bytes_of(const std::string& name, size_t rows) { return rows * kChannels * type_in(name).size; }

template <class T>
void put(char* to, size_t index, float value) {
    T narrowed;
    dynorm::reference::narrow(value, &narrowed);
    std::memcpy(to + index * sizeof(T), &narrowed, sizeof(T));
}

Bytes random_matrix(const std::string& name, size_t rows, std::mt19937& random) {
    std::normal_distribution<float> normal(0, 3);
    const ElementType& type = type_in(name);
    Bytes bytes(new char[bytes_of(name, rows)]);
    for (size_t i = 0; i < rows * kChannels; ++i) {
        const float value = normal(random);
        switch (type.code) {
            case 1: put<float>(bytes.get(), i, value); break;
            case 10: put<dynorm::Half>(bytes.get(), i, value); break;
            case 16: put<dynorm::BFloat16>(bytes.get(), i, value); break;
            default: {
                const double wide = value;
                std::memcpy(bytes.get() + i * sizeof wide, &wide, sizeof wide);
            }
        }
    }
    return bytes;
}

// Calls see(name, data) for every output.
template <class See>
void run(const Api& api, const OrtMemoryInfo* memory, const Session& session, const Case& one,
         const See& see) {
    const int64_t shape[] = {int64_t(one.rows), int64_t(kChannels)};
    std::vector<OrtValue*> values(session.inputs().size(), nullptr);
    for (size_t i = 0; i < values.size(); ++i) {
        const std::string& name = session.inputs()[i];
        api.check(api.CreateTensorWithDataAsOrtValue(memory, one.feeds[i].get(), bytes_of(name, one.rows),
                                                     shape, 2, type_in(name).code, &values[i]));
    }
    const std::vector<OrtValue*> results = session.run(values);
    for (size_t i = 0; i < results.size(); ++i) {
        void* data = nullptr;
        api.check(api.GetTensorMutableData(results[i], &data));
        see(i, static_cast<const char*>(data));
        api.ReleaseValue(results[i]);
    }
    for (OrtValue* value : values) api.ReleaseValue(value);
}

Case make_case(const Session& session, size_t index) {
    std::mt19937 random{unsigned(index)};
    Case one{index % kEvery == 0 ? kLongRows : 1 + index % 7, {}, {}};
    for (const std::string& name : session.inputs()) {
        one.feeds.push_back(random_matrix(name, one.rows, random));
    }
    return one;
}

int run_concurrently(const Api& api, const OrtMemoryInfo* memory, const Session& alone, const Session& shared,
                     size_t threads, size_t runs) {
    std::vector<Case> cases;
    for (size_t i = 0; i < threads * runs; ++i) {
        cases.push_back(make_case(alone, i));
        Case& one = cases.back();
        run(api, memory, alone, one, [&](size_t output, const char* data) {
            const size_t size = bytes_of(alone.outputs()[output], one.rows);
            one.expected.emplace_back(new char[size]);
            std::memcpy(one.expected.back().get(), data, size);
        });
    }
    std::atomic<size_t> waiting{0}, inside{0}, most{0}, different{0};
    std::vector<std::thread> workers;
    workers.reserve(threads);
    for (size_t t = 0; t < threads; ++t) {
        workers.emplace_back([&, t] {
            for (++waiting; waiting < threads;) std::this_thread::yield();  // all at once
            for (size_t r = 0; r < runs; ++r) {
                const Case& one = cases[t * runs + r];
                const size_t now = ++inside;
                for (size_t known = most; known < now && !most.compare_exchange_weak(known, now);) {
                }
                run(api, memory, shared, one, [&](size_t output, const char* data) {
                    const size_t size = bytes_of(shared.outputs()[output], one.rows);
                    if (std::memcmp(data, one.expected[output].get(), size) != 0) ++different;
                });
                --inside;
            }
        });
    }
    for (std::thread& worker : workers) worker.join();
    std::printf("%zu runs of %zu threads, up to %zu at once: %zu of %zu answers differ\n", threads * runs,
                threads, size_t(most), size_t(different), threads * runs * shared.outputs().size());
    return different ? 1 : 0;
}

size_t resident_kilobytes() {
    size_t all = 0, pages = 0;
    std::ifstream("/proc/self/statm") >> all >> pages;
    return pages * size_t(sysconf(_SC_PAGESIZE)) / 1024;
}

void make_and_destroy(const Api& api, const OrtEnv* env, const OrtMemoryInfo* memory, char** arguments,
                      size_t count) {
    size_t before = 0;
    for (size_t i = 0; i < count; ++i) {
        if (i == count / 4) before = resident_kilobytes();  // what is taken once has been taken
        const Session session(api, env, arguments[2], arguments[3], 1);
        run(api, memory, session, make_case(session, i + 1), [](size_t, const char*) {});
    }
    std::printf("%zu sessions: the last %zu took %ld KiB more\n", count, count - count / 4,
                long(resident_kilobytes()) - long(before));
}

int misused() {
    std::fprintf(stderr, "see the head of under_load.cpp\n");
    return 2;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 6) return misused();
    const std::string what = arguments[4];
    const size_t number = std::strtoull(arguments[5], nullptr, 10);
    const Api api = sessions::load(arguments[1]);
    OrtEnv* env = nullptr;
    OrtMemoryInfo* memory = nullptr;
    api.check(api.CreateEnv(3, "under_load", &env));
    api.check(api.CreateCpuMemoryInfo(1, 0, &memory));
    int result = 0;
    if (what == "concurrent" && count == 8) {
        const size_t runs = std::strtoull(arguments[6], nullptr, 10);
        const Session alone(api, env, arguments[2], arguments[3], 1);
        const Session shared(api, env, arguments[2], arguments[3],
                             int(std::strtol(arguments[7], nullptr, 10)));
        result = run_concurrently(api, memory, alone, shared, number, runs);
    } else if (what == "sessions") {
        make_and_destroy(api, env, memory, arguments, number);
    } else {
        return misused();
    }
    api.ReleaseMemoryInfo(memory);
    api.ReleaseEnv(env);
    return result;
}
