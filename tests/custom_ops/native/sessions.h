// ONNX Runtime's sessions from C++ without its header: the entries of its function table that make and run
// them, by their places. With the official header the places are checked when this is compiled.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "ort_api.h"

struct OrtEnv;
struct OrtSession;
struct OrtRunOptions;
struct OrtMemoryInfo;
struct OrtAllocator;

namespace sessions {

using Status = OrtStatus*;

// use(name, place, what it returns, arguments)
// clang-format off: a line each.
#define SESSION_ENTRIES(use)                                                                        \
    use(GetErrorMessage, 2, const char*, (const OrtStatus*))                                        \
    use(CreateEnv, 3, Status, (int, const char*, OrtEnv**))                                         \
    use(CreateSession, 7, Status, (const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**)) \
    use(Run, 9, Status,                                                                             \
        (OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, size_t,     \
         const char* const*, size_t, OrtValue**))                                                   \
    use(CreateSessionOptions, 10, Status, (OrtSessionOptions**))                                    \
    use(DisableMemPattern, 17, Status, (OrtSessionOptions*))                                        \
    use(DisableCpuMemArena, 19, Status, (OrtSessionOptions*))                                       \
    use(SetIntraOpNumThreads, 24, Status, (OrtSessionOptions*, int))                                \
    use(SessionGetInputCount, 30, Status, (const OrtSession*, size_t*))                             \
    use(SessionGetOutputCount, 31, Status, (const OrtSession*, size_t*))                            \
    use(SessionGetInputName, 36, Status, (const OrtSession*, size_t, OrtAllocator*, char**))        \
    use(SessionGetOutputName, 37, Status, (const OrtSession*, size_t, OrtAllocator*, char**))       \
    use(CreateTensorWithDataAsOrtValue, 49, Status,                                                 \
        (const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**))             \
    use(GetTensorMutableData, 51, Status, (OrtValue*, void**))                                      \
    use(CreateCpuMemoryInfo, 69, Status, (int, int, OrtMemoryInfo**))                               \
    use(AllocatorFree, 76, Status, (OrtAllocator*, void*))                                          \
    use(GetAllocatorWithDefaultOptions, 78, Status, (OrtAllocator**))                               \
    use(ReleaseEnv, 92, void, (OrtEnv*))                                                            \
    use(ReleaseStatus, 93, void, (OrtStatus*))                                                      \
    use(ReleaseMemoryInfo, 94, void, (OrtMemoryInfo*))                                              \
    use(ReleaseSession, 95, void, (OrtSession*))                                                    \
    use(ReleaseValue, 96, void, (OrtValue*))                                                        \
    use(ReleaseSessionOptions, 100, void, (OrtSessionOptions*))                                     \
    use(RegisterCustomOpsLibrary_V2, 228, Status, (OrtSessionOptions*, const char*))
// clang-format on

#ifdef DYNORM_OFFICIAL_ORT_HEADER
#define SESSION_PLACE(name, place, result, arguments) \
    static_assert(offsetof(OrtApi, name) == (place) * sizeof(void*), "OrtApi::" #name " has moved");
SESSION_ENTRIES(SESSION_PLACE)
#undef SESSION_PLACE
#endif

// The entries by name.
struct Api {
#define SESSION_MEMBER(name, place, result, arguments) result(*name) arguments noexcept;
    SESSION_ENTRIES(SESSION_MEMBER)
#undef SESSION_MEMBER

    explicit Api(const OrtApi* api) {
        void* const* const table = reinterpret_cast<void* const*>(api);
#define SESSION_READ(name, place, result, arguments) \
    name = reinterpret_cast<result(*) arguments noexcept>(table[place]);
        SESSION_ENTRIES(SESSION_READ)
#undef SESSION_READ
    }

    // Ends the program where the runtime complains.
    void check(Status status) const {
        if (!status) return;
        std::fprintf(stderr, "%s\n", GetErrorMessage(status));
        std::exit(1);
    }
};

// The runtime in a file, libonnxruntime.so.
inline Api load(const char* file) {
    void* const library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    auto* const base =
        library ? reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase")) : nullptr;
    if (!base) {
        std::fprintf(stderr, "%s: %s\n", file, dlerror());
        std::exit(1);
    }
    return Api(base()->GetApi(dynorm::kOrtApiVersion));
}

// A session of a model file with our library. No arena: every tensor is an allocation of its own, which the
// sanitizers and valgrind see the ends of.
class Session {
  public:
    Session(const Api& api, const OrtEnv* env, const char* library, const char* model, int threads)
        : api_(api) {
        OrtSessionOptions* options = nullptr;
        api.check(api.CreateSessionOptions(&options));
        api.check(api.SetIntraOpNumThreads(options, threads));
        api.check(api.DisableCpuMemArena(options));
        api.check(api.DisableMemPattern(options));
        api.check(api.RegisterCustomOpsLibrary_V2(options, library));
        api.check(api.CreateSession(env, model, options, &session_));
        api.ReleaseSessionOptions(options);
        inputs_ = names(api.SessionGetInputCount, api.SessionGetInputName);
        outputs_ = names(api.SessionGetOutputCount, api.SessionGetOutputName);
    }
    ~Session() { api_.ReleaseSession(session_); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    const std::vector<std::string>& inputs() const { return inputs_; }
    const std::vector<std::string>& outputs() const { return outputs_; }

    // The outputs, to be released by the caller.
    std::vector<OrtValue*> run(const std::vector<OrtValue*>& values) const {
        const auto pointers = [](const std::vector<std::string>& names) {
            std::vector<const char*> result;
            result.reserve(names.size());
            for (const std::string& name : names) result.push_back(name.c_str());
            return result;
        };
        const auto given = pointers(inputs_), wanted = pointers(outputs_);
        std::vector<OrtValue*> results(wanted.size(), nullptr);
        api_.check(api_.Run(session_, nullptr, given.data(), values.data(), given.size(), wanted.data(),
                            wanted.size(), results.data()));
        return results;
    }

  private:
    template <class Count, class Name>
    std::vector<std::string> names(Count count_of, Name name_of) const {
        OrtAllocator* allocator = nullptr;
        api_.check(api_.GetAllocatorWithDefaultOptions(&allocator));
        size_t count = 0;
        api_.check(count_of(session_, &count));
        std::vector<std::string> result;
        for (size_t i = 0; i < count; ++i) {
            char* name = nullptr;
            api_.check(name_of(session_, i, allocator, &name));
            result.push_back(name);
            api_.check(api_.AllocatorFree(allocator, name));
        }
        return result;
    }

    const Api& api_;
    OrtSession* session_ = nullptr;
    std::vector<std::string> inputs_, outputs_;
};

}  // namespace sessions
