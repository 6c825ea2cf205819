// The emulated card: compiles all kernels for the processor, and launches them by name.
//
// Owns the fibers that a block's threads run on and the table of kernels (`list.h`) with their signatures. A fiber
// is entered by ucontext once, and left and come back to by setjmp, which needs no system call. It must not know
// memory or lanes (`emulated.rs`).

#include "kernels.cu"

#include <setjmp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <type_traits>
#include <utility>

namespace emulator {

thread_local Now now;

namespace {

const unsigned THREADS_MAX = 1024;
const size_t STACK_BYTES = 256 << 10;
const size_t GUARD_BYTES = 64 << 10;
const size_t SHARED_BYTES_MAX = 48 << 10;

// How the launcher is come back to.
const int BACK = 1, NO_MEMORY = 2;

// How a block ended, as `emulated.rs` reads it.
enum Outcome : int { DONE = 0, STUCK = 1, OUT_OF_MEMORY = 2, MISALIGNED = 3 };

// A line of a kernel, as the compiler's checks name it.
struct Line {
    const char* file;
    unsigned line, column;
};

// The first line of this launch that used an address that is no multiple of its type's alignment. Here that is
// allowed; a card stops at it.
thread_local Line misaligned;

struct Fiber {
    ucontext_t entry;
    jmp_buf at;
    unsigned char* stack;
    bool is_entered;
    unsigned thread;
};

// Threads that wait, in the order they came.
struct Waiting {
    Fiber* fibers[THREADS_MAX];
    unsigned count;
};

struct Warp {
    Waiting waiting;
    // By turns, so that one may put its next value down while another reads the last.
    uint64_t slots[2][WARP];
    unsigned turn[WARP];
};

// A kernel with its arguments.
struct Call {
    void (*run)(void** args);
    void** args;
};

// All that one thread of the process needs to run blocks.
struct Engine {
    Fiber fibers[THREADS_MAX];
    Fiber* free[THREADS_MAX];
    unsigned free_count;
    Fiber* ready[THREADS_MAX];
    unsigned ready_first, ready_count;
    Waiting block;
    Warp warps[THREADS_MAX / WARP];
    unsigned started, ended;
    bool in_reverse;
    Call call;
    Fiber* current;
    jmp_buf back;
    alignas(16) unsigned char shared[SHARED_BYTES_MAX];

    ~Engine() {
        for (Fiber& fiber : fibers)
            if (fiber.stack) munmap(fiber.stack, GUARD_BYTES + STACK_BYTES);
    }
};

struct EngineOwner {
    Engine* engine = nullptr;
    ~EngineOwner() {
        if (!engine) return;
        engine->~Engine();
        free(engine);
    }
};
thread_local EngineOwner owner;

void make_ready(Engine& e, Waiting& waiting) {
    for (unsigned i = 0; i < waiting.count; i++)
        e.ready[(e.ready_first + e.ready_count++) % THREADS_MAX] = waiting.fibers[i];
    waiting.count = 0;
}

void take_thread(Engine& e, Fiber* fiber) {
    unsigned number = e.started++;
    fiber->thread = e.in_reverse ? now.threads.x - 1 - number : number;
    now.thread.x = fiber->thread;
}

// Runs threads, one after another as long as they do not wait; then goes on with another fiber.
void fiber_main();

// Starts a fiber on its own stack, which it has from its first start on.
[[noreturn]] void enter(Engine& e, Fiber* fiber) {
    if (!fiber->stack) {
        void* stack = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                           -1, 0);
        if (stack == MAP_FAILED) _longjmp(e.back, NO_MEMORY);
        fiber->stack = (unsigned char*)stack;
        mprotect(stack, GUARD_BYTES, PROT_NONE);
    }
    getcontext(&fiber->entry);
    fiber->entry.uc_stack.ss_sp = fiber->stack + GUARD_BYTES;
    fiber->entry.uc_stack.ss_size = STACK_BYTES;
    fiber->entry.uc_link = nullptr;
    makecontext(&fiber->entry, fiber_main, 0);
    fiber->is_entered = true;
    setcontext(&fiber->entry);
    _longjmp(e.back, NO_MEMORY);
}

// Goes on with whatever can run: a thread that need not wait any more, or a new one, or the launcher.
[[noreturn]] void go_on(Engine& e) {
    if (e.ready_count > 0) {
        Fiber* to = e.ready[e.ready_first];
        e.ready_first = (e.ready_first + 1) % THREADS_MAX;
        e.ready_count--;
        e.current = to;
        _longjmp(to->at, 1);
    }
    // Here either all threads have ended, or those that are left wait for each other.
    if (e.started == now.threads.x) _longjmp(e.back, BACK);
    Fiber* to = e.free[--e.free_count];
    e.current = to;
    take_thread(e, to);
    if (to->is_entered) _longjmp(to->at, 1);
    enter(e, to);
}

// Comes back when somebody goes on with this fiber.
__attribute__((noinline)) void leave(Engine& e, Fiber* self) {
    if (_setjmp(self->at) == 0) go_on(e);
    now.thread.x = self->thread;
}

void fiber_main() {
    Engine& e = *owner.engine;
    Fiber* self = e.current;
    for (;;) {
        e.call.run(e.call.args);
        e.ended++;
        if (e.ready_count == 0 && e.started < now.threads.x) {
            take_thread(e, self);
            continue;
        }
        e.free[e.free_count++] = self;
        leave(e, self);
    }
}

// Forgets what all fibers were in the middle of.
void reset(Engine& e) {
    e.free_count = 0;
    for (unsigned i = THREADS_MAX; i-- > 0;) {
        e.fibers[i].is_entered = false;
        e.free[e.free_count++] = &e.fibers[i];
    }
}

// Runs the threads of `now.block` to their end.
Outcome run_block(Engine& e, size_t shared_bytes) {
    e.started = e.ended = e.ready_count = e.block.count = 0;
    for (Warp& warp : e.warps) {
        warp.waiting.count = 0;
        memset(warp.turn, 0, sizeof warp.turn);
    }
    e.in_reverse = (now.block.x + now.block.y + now.block.z) % 2 == 1;
    // Whatever a kernel does not write itself is not a number.
    memset(e.shared, 0xff, shared_bytes);
    int how = _setjmp(e.back);
    if (how == 0) go_on(e);
    if (how == BACK && e.ended == now.threads.x) return DONE;
    reset(e);
    return how == BACK ? STUCK : OUT_OF_MEMORY;
}

}  // namespace

void wait_for_block() {
    Engine& e = *owner.engine;
    if (e.block.count + 1 == now.threads.x) return make_ready(e, e.block);
    e.block.fibers[e.block.count++] = e.current;
    leave(e, e.current);
}

const uint64_t* exchange(uint64_t mine) {
    Engine& e = *owner.engine;
    unsigned first = now.thread.x / WARP * WARP, lane = now.thread.x % WARP;
    Warp& warp = e.warps[first / WARP];
    uint64_t* slots = warp.slots[warp.turn[lane]++ % 2];
    slots[lane] = mine;
    unsigned lanes = now.threads.x - first < WARP ? now.threads.x - first : WARP;
    if (warp.waiting.count + 1 == lanes) {
        make_ready(e, warp.waiting);
    } else {
        warp.waiting.fibers[warp.waiting.count++] = e.current;
        leave(e, e.current);
    }
    return slots;
}

namespace {

// What a parameter is, as `emulated.rs` reads it.
enum Kind : unsigned { POINTER = 1, U32 = 2, F32 = 3, STRUCT = 4 };

struct Parameter {
    unsigned kind, bytes;
};

const unsigned PARAMETERS_MAX = 24;

struct Kernel {
    const char* name;
    void (*run)(void** args);
    unsigned count;
    Parameter parameters[PARAMETERS_MAX];
};

template <typename A>
constexpr Parameter parameter() {
    using T = std::remove_cv_t<std::remove_reference_t<A>>;
    unsigned kind = std::is_pointer<T>::value            ? POINTER
                    : std::is_same<T, unsigned>::value ? U32
                    : std::is_same<T, float>::value      ? F32
                                                         : STRUCT;
    return {kind, sizeof(T)};
}

template <typename F, F* function>
struct Entry;

template <typename... A, void (*function)(A...)>
struct Entry<void(A...), function> {
    template <size_t... I>
    static void call(void** args, std::index_sequence<I...>) {
        function(*(std::remove_reference_t<A>*)args[I]...);
    }
    static void run(void** args) { call(args, std::index_sequence_for<A...>()); }
    static constexpr Kernel kernel(const char* name) {
        static_assert(sizeof...(A) <= PARAMETERS_MAX, "a kernel has too many parameters");
        return {name, run, sizeof...(A), {parameter<A>()...}};
    }
};

}  // namespace
}  // namespace emulator

// For tests of the emulator: all threads but one meet at a barrier.
extern "C" __global__ void emulator_meet(unsigned* met, unsigned missing) {
    if (threadIdx.x == missing) return;
    __syncthreads();
    met[threadIdx.x] = 1;
}

namespace emulator {
namespace {

#define KERNEL(name) Entry<decltype(::name), ::name>::kernel(#name),
const Kernel KERNELS[] = {
#include "list.h"
    KERNEL(emulator_meet)
};
#undef KERNEL

const size_t KERNEL_COUNT = sizeof KERNELS / sizeof *KERNELS;

}  // namespace
}  // namespace emulator

using namespace emulator;

// What the compiler calls where -fsanitize=alignment finds something.
extern "C" void __ubsan_handle_type_mismatch_v1(const Line* line, void*) {
    if (!misaligned.file) misaligned = *line;
}

// Where the last launch was misaligned, if it was.
extern "C" const char* emulator_misaligned(unsigned* line) {
    *line = misaligned.line;
    return misaligned.file;
}

// Whether this file was compiled for processors with fused products.
extern "C" int emulator_needs_fma() {
#ifdef __FMA__
    return 1;
#else
    return 0;
#endif
}

// The number of the kernel, or -1.
extern "C" int emulator_find(const char* name) {
    for (size_t i = 0; i < KERNEL_COUNT; i++)
        if (strcmp(KERNELS[i].name, name) == 0) return (int)i;
    return -1;
}

// The parameters of a kernel: returns their count, and one of them if there is such.
extern "C" unsigned emulator_parameter(int kernel, unsigned index, unsigned* kind, unsigned* bytes) {
    const Kernel& k = KERNELS[kernel];
    if (index < k.count) {
        *kind = k.parameters[index].kind;
        *bytes = k.parameters[index].bytes;
    }
    return k.count;
}

// Runs a kernel to its end. What cannot be run to its end is an `Outcome` other than `DONE`: threads of a block that
// wait for others that never come, no memory for their stacks, or an address that a card would not take.
extern "C" int emulator_launch(int kernel, const unsigned* blocks, unsigned threads, unsigned shared_bytes,
                               void** args) {
    if (!owner.engine) {
        owner.engine = (Engine*)calloc(1, sizeof(Engine));
        if (!owner.engine) return OUT_OF_MEMORY;
        reset(*owner.engine);
    }
    Engine& e = *owner.engine;
    misaligned = {nullptr, 0, 0};
    e.call = {KERNELS[kernel].run, args};
    now = {{0, 0, 0}, {0, 0, 0}, {blocks[0], blocks[1], blocks[2]}, {threads, 1, 1}, e.shared};
    for (now.block.z = 0; now.block.z < blocks[2]; now.block.z++)
        for (now.block.y = 0; now.block.y < blocks[1]; now.block.y++)
            for (now.block.x = 0; now.block.x < blocks[0]; now.block.x++) {
                Outcome outcome = run_block(e, shared_bytes);
                if (outcome != DONE) return outcome;
            }
    return misaligned.file ? MISALIGNED : DONE;
}
