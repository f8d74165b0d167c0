// The library as an Android archive. `scripts/android.sh` with the NDK in ANDROID_NDK_HOME makes what it packs: the four libraries and
// uniffi's Kotlin. Not run here: neither Gradle's Android plugin nor the NDK was to be had where the project's checks run; the same
// sources are compiled by pom.xml. With `-PampouleGpu` it packs the libraries of `scripts/android.sh --gpu`, which compute on GPUs too.
plugins {
    id("com.android.library") version "8.13.0"
    id("org.jetbrains.kotlin.android") version "2.4.21"
}

group = "rs.ampoule"
version = "0.1.0"

val made = rootDir.resolve("../../target/android")

android {
    namespace = "rs.ampoule"
    compileSdk = 36
    defaultConfig {
        minSdk = 26
        consumerProguardFiles("consumer-rules.pro")
        ndk {
            abiFilters += listOf("arm64-v8a", "armeabi-v7a", "x86_64", "x86")
        }
    }
    sourceSets["main"].apply {
        java.srcDirs("src/main/kotlin", "../kotlin/src/main/kotlin", "../../target/kotlin/uniffi")
        // Linked with `-z max-page-size=16384`, for devices of 16 KB pages; stripped already.
        jniLibs.srcDir(made.resolve(if (providers.gradleProperty("ampouleGpu").isPresent) "gpu" else "jni"))
        resources.srcDir("../../target/kotlin/licences")
    }
    packaging {
        jniLibs.keepDebugSymbols += "**/libampoule_bindings.so"
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    compilerOptions {
        jvmTarget.set(org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_17)
        // The oldest Kotlin whose compiler reads the classes.
        languageVersion.set(org.jetbrains.kotlin.gradle.dsl.KotlinVersion.KOTLIN_2_2)
        apiVersion.set(org.jetbrains.kotlin.gradle.dsl.KotlinVersion.KOTLIN_2_2)
    }
}

dependencies {
    // Of the AAR, which has JNA's own library for each processor.
    api("net.java.dev.jna:jna:5.19.1@aar")
    api("org.jetbrains.kotlinx:kotlinx-coroutines-core:1.11.0")
}
